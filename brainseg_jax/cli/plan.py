"""`brainseg plan --config=configs/pretrain_vit.py:full --gpu=h100 --devices=8`: does a training step fit, and how long may it take?

Compiles, on a machine without a GPU, the step that training would run on these GPUs, and prints memory, kernels, collectives and FLOPs of
each device, and a range for the time. `--search` finds the largest batch that fits, with and without recomputing. The exit code is 0 if
the step fits and 1 if not.

Exact, by compiling: shapes, shardings, collectives, kernels for this GPU, and the memory of the compiled program. Estimated: the time, and
a memory margin for what the compiler does not count.
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
from brainseg_jax.training.memory import Memory, gib

flags.declare_key_flag("config")  # or --help leaves it out
flags.declare_key_flag("devices")
GPU = flags.DEFINE_string("gpu", "", f"The GPU: {', '.join(gpus.GPUS)}.")
HOSTS = flags.DEFINE_integer("hosts", 1, "The number of hosts that the devices are spread over.")
SEARCH = flags.DEFINE_bool("search", False, "Find the largest batch that fits, with and without recomputing.")
VOLUMES = flags.DEFINE_integer("training_volumes", 0, "The number of training volumes, for the length of a run set in epochs.")
JSON = flags.DEFINE_bool("json", False, "Print JSON.")


def main(argv: list[str]) -> int:
    """Compiles the step and prints its plan. Returns the exit code."""
    check_given(argv)
    place = Place(gpus.gpu(GPU.value), DEVICES.value or 1, HOSTS.value)
    if fault := compilation.missing():
        raise InputError(fault)
    compilation.without_gpus()
    from brainseg_jax.planning.plan import (
        nearest,
        planned,
        searched,
        settled,  # imports JAX
    )

    config = settled(CONFIG.value)
    if SEARCH.value:
        plans = searched(config, place, VOLUMES.value)
        print(json.dumps(plans, indent=1) if JSON.value else advice(plans, config))
        return 0 if any(plan["fits"] for plan in plans) else 1
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
    """The plan as a table of two columns, for the terminal."""
    memory, flops, (data, fsdp) = plan["memory"], plan["flops"], (plan["mesh"]["data"], plan["mesh"]["fsdp"])
    step = f"{plan['objective']} of {plan['encoder']}, {plan['batch']} crops, {plan['per_device']} on each device, {plan['dtype']}"
    step += ", recomputing" if plan["remat"] else ""
    step += f", in {plan['accumulate']} parts" if plan["accumulate"] > 1 else ""
    place = f"{plan['devices']} × {plan['gpu']} on {plan['hosts']} host{'s' * (plan['hosts'] > 1)}, mesh data {data} × fsdp {fsdp}"
    place += f": {idle} are left idle" if (idle := plan["devices"] - data * fsdp) else ""
    needed, arguments, outputs, temporaries, peak = (gib(memory[name]) for name in ("needed", *Memory._fields))
    limit = f"{gib(memory['share'] * memory['device'])} GiB, {memory['share']:.0%} of {gib(memory['device'])} (XLA_CLIENT_MEM_FRACTION)"
    rows = {
        "step": step,
        "place": place,
        "memory of each": f"{needed} GiB: state and batch {arguments}, results {outputs}, temporaries {temporaries}; peak {peak}",
        "its limit": f"{limit}, less a margin of {gib(memory['margin'])}",
        "verdict": "fits" if plan["fits"] else "does not fit",
    }
    for kind, row in plan["kernels"].items():
        work = f"{row['flops'] / 1e12:.3f} TFLOP, " if row["flops"] else ""
        rows[f"kernels: {kind}"] = f"{row['number']} a step, {work}{row['bytes'] / 1e9:.1f} GB"
    for kind, row in plan["collectives"].items():
        beside = f"{row['overlapped']} with {row['overlapped_bytes'] / 1e6:.1f} MB beside kernels"
        rows[kind] = f"{row['number']} a step, {row['bytes'] / 1e6:.1f} MB; {beside}"
    forward = f"forward {flops['forward_of_a_crop'] / 1e9:.1f} G a crop"
    rows["analytic FLOPs"] = f"{flops['step'] / 1e12:.2f} T a step on all devices; {forward}"
    rows["compiled FLOPs"] = f"{flops['compiled_per_device'] / 1e12:.2f} T a step on each device"
    rows |= times(plan)
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items()) + f"\n\n{FOOT}"


FOOT = """Proven by compiling, nothing was run: shapes, places, collectives, kernels, and the memory of this program.
Estimated: the margin, and times. A step is the sum over kernels of max(FLOPs / (share × peak), bytes / (share × bandwidth)) + launch,
and of collectives as far as no kernel runs beside them; the shares are in brainseg_jax/planning/roofline.py."""


def times(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows on time: of a step, and of the run."""
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


def advice(plans: list[dict[str, Any]], config: ConfigDict) -> str:
    """The plans of a search, a line each, and the flags of the largest batch; of equal batches the one without recomputing."""
    from brainseg_jax.planning.plan import setting

    lines = []
    for plan in plans:
        how = "recomputing:" if plan["remat"] else "without recomputing:"
        state = f"{plan['batch']} crops, {plan['per_device']} on each device" if plan["fits"] else "no batch fits"
        lines.append(f"{how:20} {state}; {gib(plan['memory']['needed'])} GiB of each device; {times(plan)[0][1]}")
    fitting = [plan for plan in plans if plan["fits"]]
    if not fitting:
        return "\n".join([*lines, "use a card with more memory, mesh.fsdp, or a smaller data.crop"])
    best = max(fitting, key=lambda plan: (plan["batch"], not plan["remat"]))
    return "\n".join([*lines, f"largest: {setting(best, config)}"])


def command() -> None:
    """Entry point."""
    run(main)
