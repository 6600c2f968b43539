"""The plan of a training step at a place: memory, kernels, collectives, FLOPs and time; and the largest batch that fits there."""

import math
import sys
from collections import defaultdict
from typing import Any

import jax
from ml_collections import ConfigDict

from brainseg_jax.config.checks import check, check_idle
from brainseg_jax.parallel import sharding
from brainseg_jax.planning import compilation, roofline
from brainseg_jax.planning.compilation import Compiled, Place
from brainseg_jax.planning.flops import flops
from brainseg_jax.planning.hlo import Facts
from brainseg_jax.planning.search import largest
from brainseg_jax.training.loop import num_steps
from brainseg_jax.training.memory import MARGIN, gib, memory_fraction
from brainseg_jax.training.program import experiment, program, resolve_auto, sample_of


def settled(config: ConfigDict) -> ConfigDict:
    """The checked config as trained on a GPU: in bfloat16 by default, with the number of classes of its label table."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        resolve_auto(config, on_cpu=False)
    check(config)
    check_idle(config)
    return config


def changed(config: ConfigDict, **changes: Any) -> ConfigDict:
    """A copy of the config with changed values; in keyword names "__" stands for "."."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def planned(config: ConfigDict, place: Place, volumes: int = 0) -> dict[str, Any]:
    """The plan of a config's step at a place, ready for JSON. Raises InputError for a batch or mesh that does not fit the devices."""
    steps = num_steps(config, volumes) if config.steps or volumes else 0  # 0: in epochs of an unknown number of volumes
    # The program does not depend on the length of the run, which only changes learning rates.
    return described(config, compilation.compiled(config, place, steps or 1000), steps)


def described(config: ConfigDict, made: Compiled, steps: int) -> dict[str, Any]:
    """The plan of a compiled step, ready for JSON."""
    card, devices = made.place.card, made.mesh["data"] * made.mesh["fsdp"]
    m = made.memory
    out = {
        "gpu": card.title,
        "devices": made.place.devices,
        "hosts": made.place.hosts,
        "mesh": made.mesh,
        "objective": config.objective,
        "encoder": config.encoder,
        "batch": config.data.batch,
        "crops_per_volume": config.data.crops_per_volume,
        "per_device": config.data.batch // devices,
        "accumulate": config.optim.accumulate,
        "remat": config.remat,
        "dtype": config.dtype,
        "fits": made.fits,
        "memory": m._asdict() | {"needed": m.needed, "margin": int(MARGIN), "share": memory_fraction(), "device": card.memory},
        "kernels": kernels(made.dearest),
        "collectives": collectives(made.dearest),
        "flops": analytic(config) | {"compiled_per_device": made.dearest.flops, "bytes_per_device": made.dearest.bytes},
        "compiled_in": round(made.seconds, 1),
        "steps": steps,
    }
    if not made.dearest.unknown:
        per_host = made.place.devices // made.place.hosts
        fast = roofline.seconds(made.cheapest, card, roofline.FAST, per_host)
        slow = roofline.seconds(made.dearest, card, roofline.SLOW, per_host)
        out["seconds"] = [fast, slow]
        out["hours"] = [steps * fast / 3600, steps * slow / 3600] if steps else []
    return out | {"unknown": list(made.dearest.unknown)}


def kernels(facts: Facts) -> dict[str, dict[str, float]]:
    """By kind: the number of kernels in a step, their FLOPs and bytes."""
    out: dict[str, dict[str, float]] = defaultdict(lambda: {"number": 0, "flops": 0.0, "bytes": 0.0})
    for kernel in facts.kernels:
        row = out[kernel.kind]
        row["number"] += kernel.times
        row["flops"] += kernel.times * (kernel.flops or 0)
        row["bytes"] += kernel.times * kernel.bytes
    return dict(sorted(out.items(), key=lambda item: -item[1]["bytes"]))


def collectives(facts: Facts) -> dict[str, dict[str, float]]:
    """By kind: the number of collectives in a step, bytes of their arrays, and how many of these overlap with kernels."""
    out: dict[str, dict[str, float]] = defaultdict(lambda: {"number": 0, "bytes": 0, "overlapped": 0, "overlapped_bytes": 0})
    for collective in facts.collectives:
        row, overlaps = out[collective.kind], collective.asynchronous and bool(collective.hidden)
        row["number"] += collective.times
        row["bytes"] += collective.times * collective.bytes
        row["overlapped"] += collective.times * overlaps
        row["overlapped_bytes"] += collective.times * collective.bytes * overlaps
    return dict(out)


def analytic(config: ConfigDict) -> dict[str, int]:
    """Analytic FLOPs: of a whole step, including recomputation, and of the forward pass of one crop."""
    config = changed(config, attention="auto")  # whose products can all be counted
    what = experiment(config)
    objective, built = what.objective, program(config, what, sharding.make_mesh(1, 1, jax.devices()), 1000)
    rngs = {name: jax.random.key(0) for name in objective.streams}
    forward = flops(lambda params, batch: objective.apply({"params": params}, batch, True, rngs=rngs), built.like.params, sample_of(config))
    return {"step": flops(built.step, built.like, built.batch), "forward_of_a_crop": forward}


def searched(config: ConfigDict, place: Place, volumes: int = 0) -> list[dict[str, Any]]:
    """The plans of the largest batch that fits without and with recomputing; of the smallest batch if none fits."""
    return [of_largest(changed(config, remat=remat), place, volumes) for remat in (False, True)]


def of_largest(config: ConfigDict, place: Place, volumes: int = 0) -> dict[str, Any]:
    """The plan of the largest batch that fits, with one crop per volume if several do not fit; of the smallest batch if none fits."""
    step = smallest(config, place)
    plans: dict[int, dict[str, Any]] = {}

    def need(n: int) -> int:
        plans[n] = planned(changed(config, data__batch=n * step), place, volumes)
        needed = plans[n]["memory"]["needed"]
        print(f"{n * step} crops: {gib(needed)} GiB of each device", file=sys.stderr)
        return needed

    plan = plans[largest(need, memory_fraction() * place.card.memory - MARGIN) or 1]
    if plan["fits"] or config.data.crops_per_volume == 1:
        return plan
    return of_largest(changed(config, data__crops_per_volume=1), place, volumes)


def smallest(config: ConfigDict, place: Place) -> int:
    """The smallest batch: a crop per accumulated part and device, and all crops of a volume per host; two for contrastive learning."""
    n = math.lcm(size_of(config, place) * config.optim.accumulate, place.hosts * config.data.crops_per_volume)
    return 2 if config.objective == "ssl" and n == 1 else n


def nearest(config: ConfigDict, place: Place, volumes: int = 0) -> str:
    """The smallest change that makes the step fit: recomputing, accumulation, sharding the state, or a smaller batch."""
    n = size_of(config, place)
    parts = [k for k in (2, 4, 8) if config.objective != "ssl" and config.data.batch % (n * k) == 0 and config.optim.accumulate < k]
    trials: list[dict[str, Any]] = [] if config.remat else [{"remat": True}]
    trials += [{"remat": True, "optim.accumulate": k} for k in parts[:1] + parts[-1:]]
    if config.mesh.fsdp != n and n > 1:
        trials.append({"remat": True, "mesh.data": 1, "mesh.fsdp": n})
    for changes in trials:
        if planned(changed(config, **changes), place, volumes)["fits"]:
            return " ".join(f"--config.{key}={value}" for key, value in changes.items())
    plan = of_largest(changed(config, remat=True), place, volumes)
    if plan["fits"]:
        return setting(plan, config)
    return f"a card with more memory, or a smaller data.crop: not even {plan['per_device']} crop on each device fits"


def setting(plan: dict[str, Any], config: ConfigDict) -> str:
    """The flags that change a config to a plan's batch."""
    flags = f"--config.data.batch={plan['batch']} --config.remat={plan['remat']}"
    crops = plan["crops_per_volume"]
    return flags + (f" --config.data.crops_per_volume={crops}" if crops != config.data.crops_per_volume else "")


def size_of(config: ConfigDict, place: Place) -> int:
    """The number of devices of the config's mesh at a place."""
    return sharding.make_mesh(config.mesh.data, config.mesh.fsdp, compilation.devices(place)).size
