"""The plan of a training step: everything there is to say about it at a place, and the largest batch that fits there."""

import math
import sys
from collections import defaultdict
from typing import Any

from ml_collections import ConfigDict

from brainseg_jax.planning import compilation, roofline
from brainseg_jax.planning.compilation import Compiled, Place
from brainseg_jax.planning.hlo import Facts
from brainseg_jax.planning.search import largest
from brainseg_jax.training.memory import MARGIN, gib, memory_fraction


def settled(config: ConfigDict) -> ConfigDict:
    """The config as a GPU would train it: computing in bfloat16 unless it says otherwise, with the classes of its labels. Checked."""
    from brainseg_jax.config.checks import check, check_idle
    from brainseg_jax.training.program import resolve_auto

    config = config.copy_and_resolve_references()
    with config.unlocked():
        resolve_auto(config, on_cpu=False)
    check(config)
    check_idle(config)
    return config


def changed(config: ConfigDict, **changes: Any) -> ConfigDict:
    """A copy of the config with other values."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def steps_of(config: ConfigDict, volumes: int) -> int:
    """Steps of the run; 0 if it is given in epochs of an unknown number of volumes."""
    from brainseg_jax.training.loop import num_steps

    return num_steps(config, volumes) if config.steps or volumes else 0


def planned(config: ConfigDict, place: Place, volumes: int = 0) -> dict[str, Any]:
    """Everything there is to say about a config's step at a place, ready for JSON. InputError for a batch or mesh that cannot be."""
    steps = steps_of(config, volumes)
    # The length of a run only moves its learning rates: the program is the same.
    made = compilation.compiled(config, place, steps or 1000)
    return described(config, made, steps)


def described(config: ConfigDict, made: Compiled, steps: int) -> dict[str, Any]:
    """What a compiled step told, ready for JSON."""
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
    """By kind: how many run in a step, their FLOPs and bytes."""
    out: dict[str, dict[str, float]] = defaultdict(lambda: {"number": 0, "flops": 0.0, "bytes": 0.0})
    for kernel in facts.kernels:
        row = out[kernel.kind]
        row["number"] += kernel.times
        row["flops"] += kernel.times * (kernel.flops or 0)
        row["bytes"] += kernel.times * kernel.bytes
    return dict(sorted(out.items(), key=lambda item: -item[1]["bytes"]))


def collectives(facts: Facts) -> dict[str, dict[str, float]]:
    """By kind: how many run in a step, bytes of their arrays, and how many of these have kernels that run beside them."""
    out: dict[str, dict[str, float]] = defaultdict(lambda: {"number": 0, "bytes": 0, "overlapped": 0, "overlapped_bytes": 0})
    for collective in facts.collectives:
        row, beside = out[collective.kind], collective.asynchronous and bool(collective.hidden)
        row["number"] += collective.times
        row["bytes"] += collective.times * collective.bytes
        row["overlapped"] += collective.times * beside
        row["overlapped_bytes"] += collective.times * collective.bytes * beside
    return dict(out)


def analytic(config: ConfigDict) -> dict[str, int]:
    """FLOPs by definition: of a whole step, recomputing included, and of one crop's forward pass."""
    import jax

    from brainseg_jax.parallel import sharding
    from brainseg_jax.planning.flops import flops
    from brainseg_jax.training.program import experiment, program, sample_of

    config = changed(config, attention="auto")  # whose products can all be seen
    what = experiment(config)
    objective, built = what.objective, program(config, what, sharding.make_mesh(1, 1, jax.devices()), 1000)
    rngs = {name: jax.random.key(0) for name in objective.streams}
    forward = flops(lambda params, batch: objective.apply({"params": params}, batch, True, rngs=rngs), built.like.params, sample_of(config))
    return {"step": flops(built.step, built.like, built.batch), "forward_of_a_crop": forward}


def searched(config: ConfigDict, place: Place, volumes: int = 0) -> list[dict[str, Any]]:
    """The plan of the largest batch that fits without recomputing, and of that with it; where none fits, the plan of the smallest."""
    return [of_largest(changed(config, remat=remat), place, volumes) for remat in (False, True)]


def of_largest(config: ConfigDict, place: Place, volumes: int = 0) -> dict[str, Any]:
    """The plan of the largest batch that fits, of one crop of each volume where several do not fit; else of the smallest there is."""
    plan = of_largest_as_it_is(config, place, volumes)
    if plan["fits"] or config.data.crops_per_volume == 1:
        return plan
    return of_largest_as_it_is(changed(config, data__crops_per_volume=1), place, volumes)


def of_largest_as_it_is(config: ConfigDict, place: Place, volumes: int) -> dict[str, Any]:
    """The same with the config's own number of crops of a volume."""
    step = smallest(config, place)
    plans: dict[int, dict[str, Any]] = {}

    def need(n: int) -> int:
        plans[n] = planned(changed(config, data__batch=n * step), place, volumes)
        needed = plans[n]["memory"]["needed"]
        print(f"{n * step} crops: {gib(needed)} GiB of each device", file=sys.stderr)
        return needed

    return plans[largest(need, memory_fraction() * place.card.memory - MARGIN) or 1]


def smallest(config: ConfigDict, place: Place) -> int:
    """The smallest batch: a crop for each part of a step on each device, all crops of a volume for each host; two for contrast."""
    n = math.lcm(size_of(config, place) * config.optim.accumulate, place.hosts * config.data.crops_per_volume)
    return 2 if config.objective == "ssl" and n == 1 else n


def nearest(config: ConfigDict, place: Place, volumes: int = 0) -> str:
    """What to change so that the step fits, the least first: recompute, cut the batch into parts, cut the state, a smaller batch."""
    n = size_of(config, place)
    parts = [k for k in (2, 4, 8) if config.objective != "ssl" and config.data.batch % (n * k) == 0 and config.optim.accumulate < k]
    ways: list[dict[str, Any]] = [] if config.remat else [{"remat": True}]
    ways += [{"remat": True, "optim.accumulate": k} for k in parts[:1] + parts[-1:]]
    if config.mesh.fsdp != n and n > 1:
        ways.append({"remat": True, "mesh.data": 1, "mesh.fsdp": n})
    for way in ways:
        if planned(changed(config, **way), place, volumes)["fits"]:
            return " ".join(f"--config.{key}={value}" for key, value in way.items())
    plan = of_largest(changed(config, remat=True), place, volumes)
    if plan["fits"]:
        return setting(plan, config)
    return f"a card with more memory, or a smaller data.crop: not even {plan['per_device']} crop on each device fits"


def setting(plan: dict[str, Any], config: ConfigDict) -> str:
    """The flags that make of a config what was planned."""
    flags = f"--config.data.batch={plan['batch']} --config.remat={plan['remat']}"
    crops = plan["crops_per_volume"]
    return flags + (f" --config.data.crops_per_volume={crops}" if crops != config.data.crops_per_volume else "")


def size_of(config: ConfigDict, place: Place) -> int:
    """Devices of the config's mesh at a place."""
    from brainseg_jax.parallel import sharding

    return sharding.make_mesh(config.mesh.data, config.mesh.fsdp, compilation.devices(place)).size
