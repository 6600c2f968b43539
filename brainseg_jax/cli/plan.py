"""`brainseg plan --config=configs/pretrain_vit.py:full --gpu=h100 --devices=8`: does it fit, and how long may it take?

Compiles, on a machine without a GPU, the very step that training would run on these GPUs, and prints what each of them needs: memory,
kernels, traffic between devices, FLOPs, and a range for the time. `--search` finds the largest batch that fits, with and without
recomputing. Ends with 0 if the step fits and with 1 if not.

Proven by compiling: shapes, places of arrays, collectives, kernels for this GPU, and the memory of the program as it was compiled.
Estimated: the time, and a margin of memory for what the compiler does not count.
"""

import json
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from brainseg_jax.cli.config_flags import CONFIG, DEVICES, check_given, run
from brainseg_jax.core.errors import InputError
from brainseg_jax.planning import compilation, gpus
from brainseg_jax.planning.compilation import Place
from brainseg_jax.planning.plan import nearest, planned, searched, setting, settled
from brainseg_jax.training.memory import gib

flags.declare_key_flag("config")  # or --help leaves it out
flags.declare_key_flag("devices")
GPU = flags.DEFINE_string("gpu", "", f"The card: {', '.join(gpus.GPUS)}.")
HOSTS = flags.DEFINE_integer("hosts", 1, "Over how many hosts they are spread.")
SEARCH = flags.DEFINE_bool("search", False, "Find the largest batch that fits, with and without recomputing.")
VOLUMES = flags.DEFINE_integer("training_volumes", 0, "Training volumes, from which a run that is given in epochs has its length.")
JSON = flags.DEFINE_bool("json", False, "Print JSON.")


def main(argv: list[str]) -> int:
    """Compiles what the flags say, and prints what it needs."""
    check_given(argv)
    place = Place(gpus.gpu(GPU.value), DEVICES.value or 1, HOSTS.value)
    if fault := compilation.missing():
        raise InputError(fault)
    compilation.without_gpus()
    config = settled(CONFIG.value)
    if SEARCH.value:
        found = searched(config, place, VOLUMES.value)
        print(json.dumps(found, indent=1) if JSON.value else advice(found, config))
        return 0 if any(row["fits"] for row in found) else 1
    plan = planned(config, place, VOLUMES.value)
    if not JSON.value:
        print(text(plan), flush=True)
    if not plan["fits"]:
        print("looking for what fits: each try compiles the step", file=sys.stderr)
        plan["nearest"] = nearest(config, place, VOLUMES.value)
    if JSON.value:
        print(json.dumps(plan, indent=1))
    elif not plan["fits"]:
        print(f"\nnearest that fits: {plan['nearest']}")
    return 0 if plan["fits"] else 1


def text(plan: dict[str, Any]) -> str:
    """The plan for people."""
    m, f = plan["memory"], plan["flops"]
    n = plan["mesh"]["data"] * plan["mesh"]["fsdp"]
    rows = [
        (
            "step",
            f"{plan['objective']} of {plan['encoder']}, {plan['batch']} crops, {plan['per_device']} on each device, {plan['dtype']}"
            + (", recomputing" if plan["remat"] else "")
            + (f", in {plan['accumulate']} parts" if plan["accumulate"] > 1 else ""),
        ),
        (
            "place",
            f"{plan['devices']} × {plan['gpu']} on {plan['hosts']} host{'s' * (plan['hosts'] > 1)}, mesh data {plan['mesh']['data']} × "
            f"fsdp {plan['mesh']['fsdp']}" + (f": {plan['devices'] - n} are left idle" if n < plan["devices"] else ""),
        ),
        (
            "memory of each",
            f"{gib(m['needed'])} GiB: state and batch {gib(m['arguments'])}, results {gib(m['outputs'])}, temporaries "
            f"{gib(m['temporaries'])}; peak {gib(m['peak'])}",
        ),
        (
            "its limit",
            f"{gib(m['share'] * m['device'])} GiB, {m['share']:.0%} of {gib(m['device'])} (XLA_CLIENT_MEM_FRACTION), less a "
            f"margin of {gib(m['margin'])}",
        ),
        ("verdict", "fits" if plan["fits"] else "does not fit"),
    ]
    for kind, row in plan["kernels"].items():
        work = f"{row['flops'] / 1e12:.3f} TFLOP, " if row["flops"] else ""
        rows.append((f"kernels: {kind}", f"{row['number']} a step, {work}{row['bytes'] / 1e9:.1f} GB"))
    for kind, row in plan["collectives"].items():
        rows.append(
            (
                kind,
                f"{row['number']} a step, {row['bytes'] / 1e6:.1f} MB; {row['overlapped']} with {row['overlapped_bytes'] / 1e6:.1f} MB "
                "beside kernels",
            )
        )
    rows.append(("analytic FLOPs", f"{f['step'] / 1e12:.2f} T a step on all devices; forward {f['forward_of_a_crop'] / 1e9:.1f} G a crop"))
    rows.append(("compiled FLOPs", f"{f['compiled_per_device'] / 1e12:.2f} T a step on each device"))
    rows += times(plan)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {what}" for name, what in rows) + f"\n\n{FOOT}"


FOOT = """Proven by compiling, nothing was run: shapes, places, collectives, kernels, and the memory of this program.
Estimated: the margin, and times. A step is the sum over kernels of max(FLOPs / (share × peak), bytes / (share × bandwidth)) + launch,
and of collectives as far as no kernel runs beside them; the shares are in brainseg_jax/planning/roofline.py."""


def times(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines about time."""
    if "seconds" not in plan:
        return [("time", f"not estimated: the work of {', '.join(plan['unknown'])} is not known")]
    fast, slow = plan["seconds"]
    rate = f"{plan['batch'] / slow:.3g} to {plan['batch'] / fast:.3g} crops/s"
    rows = [("time, estimated", f"{1000 * fast:.0f} to {1000 * slow:.0f} ms a step, {rate} on all devices")]
    if plan["steps"]:
        low, high = plan["hours"]
        rows.append(("run, estimated", f"{plan['steps']} steps, {low:.1f} to {high:.1f} h, without evaluations"))
    else:
        rows.append(("run", "given in epochs: --training_volumes=N gives its length"))
    return rows


def advice(found: list[dict[str, Any]], config: ConfigDict) -> str:
    """What the search found for a config, and the flags of the larger batch; of equal batches of the one that recomputes nothing."""
    lines = []
    for plan in found:
        how = "recomputing" if plan["remat"] else "without recomputing"
        state = f"{plan['batch']} crops, {plan['per_device']} on each device" if plan["fits"] else "no batch fits"
        lines.append(
            f"{how + ':':20} {state}; {gib(plan['memory']['needed'])} GiB of each device; " + "; ".join(w for _, w in times(plan)[:1])
        )
    fitting = [plan for plan in found if plan["fits"]]
    if not fitting:
        return "\n".join([*lines, "use a card with more memory, mesh.fsdp, or a smaller data.crop"])
    best = max(fitting, key=lambda plan: (plan["batch"], not plan["remat"]))
    return "\n".join([*lines, f"largest: {setting(best, config)}"])


def command() -> None:
    """This process as the command."""
    run(main)
