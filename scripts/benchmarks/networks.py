"""Forward passes of UNETR and Swin UNETR, against MONAI's."""

import argparse
import statistics
import sys
from functools import partial
from typing import Any

from benchmarks.measure import Result, in_process, jax_matmul_peak, timed, torch_matmul_peak

from brainseg_jax.core import runtime

CASES = {"UNETR, 160³": ("unetr", 160), "Swin UNETR 48, 96³": ("swin_unetr", 96)}  # network, edge of the crop


def networks(args: argparse.Namespace) -> tuple[str, Any]:
    """Median seconds, share of the best matrix product and peak memory, contestants by turns, for each case."""
    contestants = ["ours", *([args.against] if args.against else [])]
    lines = ["| | | seconds (median) | quartiles | share of matmul peak | peak memory, GiB |", "|---|---|---|---|---|---|"]
    results: dict[str, Any] = {}
    for case in CASES:
        turns: dict[str, list[Result]] = {name: [] for name in contestants}
        for _ in range(args.turns):
            for name in contestants:
                turns[name].append(in_process(f"{name} {case}", args.steps))
        medians, flop = {}, turns["ours"][0]["flop"]
        for name in contestants:
            low, medians[name], high = statistics.quantiles(sorted(s for turn in turns[name] for s in turn["seconds"]), n=4)
            memory = statistics.median(turn["memory"] for turn in turns[name])
            peak = max(turn["matmul"] for turn in turns[name])
            lines.append(
                f"| {case} | {turns[name][0]['what']} | {medians[name]:.2f} | {low:.2f}–{high:.2f} "
                f"| {100 * flop / medians[name] / peak:.0f} % of {peak / 1e9:.0f} GFLOP/s | {memory / 2**30:.2f} |"
            )
            print(lines[-1], file=sys.stderr)
        if args.against:
            lines.append(f"| | ratio | {medians[args.against] / medians['ours']:.2f} | | | |")
        results[case] = turns
    lines += ["", "Batch 1, float32, 36 classes, random weights. The share counts the operations of the plain algorithm. Memory: of the"]
    lines += ["process while it computes."]
    return "\n".join(lines), results


def ours(kind: str, edge: int, steps: int) -> Result:
    """Seconds of `steps` forward passes of our network."""
    runtime.keep_compiled_programs()
    import jax

    from brainseg_jax.config.keys import base
    from brainseg_jax.models.encoders import segmenter
    from brainseg_jax.planning.flops import flops

    config = base()
    config.dtype, config.data.crop, config.decoder = "float32", (edge, edge, edge), kind
    config.encoder = "vit" if kind == "unetr" else "swin"
    config.vit.update(positions="table", class_token=False, qkv_bias=False, eps=1e-5)  # MONAI's dialect
    network = segmenter(config)
    image = jax.random.uniform(jax.random.key(0), (1, edge, edge, edge, 1))
    params = jax.jit(network.init)(jax.random.key(2), image)["params"]
    forward = jax.jit(lambda params: network.apply({"params": params}, image))

    def once() -> None:
        jax.block_until_ready(forward(params))

    once()
    runtime.trim_memory()  # as predicting does once it has compiled
    seconds, memory = timed(once, steps)
    return {"what": "brainseg_jax", "seconds": seconds, "memory": memory, "matmul": jax_matmul_peak(), "flop": flops(forward, params)}


def monai(kind: str, edge: int, steps: int) -> Result:
    """The same of MONAI's."""
    import torch
    from monai.networks.nets import UNETR, SwinUNETR

    torch.manual_seed(0)
    torch.set_num_threads(runtime.cores())
    network = UNETR(1, 36, (edge, edge, edge)) if kind == "unetr" else SwinUNETR(1, 36, feature_size=48)
    image = torch.rand(1, 1, edge, edge, edge)

    def once() -> None:
        with torch.no_grad():
            network(image)

    seconds, memory = timed(once, steps)
    return {"what": "MONAI", "seconds": seconds, "memory": memory, "matmul": torch_matmul_peak()}


WORKERS = {f"{whose} {case}": partial(worker, *of) for case, of in CASES.items() for whose, worker in (("ours", ours), ("monai", monai))}
