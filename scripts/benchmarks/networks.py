"""UNETR and Swin UNETR, forward and training step, against MONAI's."""

import argparse
import statistics
import sys
from functools import partial
from typing import Any

from benchmarks.measure import Result, in_process, jax_matmul_peak, timed, torch_matmul_peak

from brainseg_jax import runtime

# Network, edge of the crop, whether it is a training step, and operations of a forward pass (2 per multiply-add, 36 classes).
CASES = {
    "UNETR 160³ forward": ("unetr", 160, False, 709.8e9),
    "UNETR 96³ training step": ("unetr", 96, True, 147.1e9),
    "Swin UNETR 48 96³ forward": ("swin_unetr", 96, False, 638.9e9),
    "Swin UNETR 48 96³ training step": ("swin_unetr", 96, True, 638.9e9),
}


def networks(args: argparse.Namespace) -> tuple[str, Any]:
    """Median seconds, share of the best matrix product and peak memory while stepping, contestants by turns, for each case."""
    contestants = ["ours"] + ([args.against] if args.against else [])
    lines = ["| | | seconds (median) | quartiles | share of matmul peak | peak memory, GiB |", "|---|---|---|---|---|---|"]
    results: dict[str, Any] = {}
    for case, (_, _, train, flop) in CASES.items():
        turns: dict[str, list[Result]] = {name: [] for name in contestants}
        for _ in range(args.turns):
            for name in contestants:
                turns[name].append(in_process(f"{name} {case}", args.steps))
        medians = {}
        for name in contestants:
            low, medians[name], high = statistics.quantiles(sorted(s for turn in turns[name] for s in turn["seconds"]), n=4)
            memory = statistics.median(turn["memory"] for turn in turns[name])
            peak = max(turn["matmul"] for turn in turns[name])
            share = 100 * flop * (3 if train else 1) / medians[name] / peak
            lines.append(
                f"| {case} | {turns[name][0]['what']} | {medians[name]:.2f} | {low:.2f}–{high:.2f} "
                f"| {share:.0f} % of {peak / 1e9:.0f} GFLOP/s | {memory / 2**30:.2f} |"
            )
            print(lines[-1], file=sys.stderr)
        if args.against:
            lines.append(f"| | ratio | {medians[args.against] / medians['ours']:.2f} | | | |")
        results[case] = turns
    lines += [
        "",
        "Batch 1, float32, 36 classes, random weights. A training step is Dice and cross entropy, gradient and AdamW. The share counts",
    ]
    lines += [
        "the operations of the plain algorithm, so a form with fewer operations can pass 100 %. Memory: of the process while it steps."
    ]
    return "\n".join(lines), results


def our_network(kind: str, edge: int, train: bool, steps: int) -> Result:
    """Seconds of `steps` forwards or training steps of our network."""
    runtime.keep_compiled_programs()
    import jax
    import optax

    from brainseg_jax import config as keys
    from brainseg_jax.losses import dice_cross_entropy
    from brainseg_jax.models import segmenter

    config = keys.base()
    config.dtype, config.data.crop, config.decoder = "float32", (edge, edge, edge), kind
    config.encoder = "vit" if kind == "unetr" else "swin"
    config.vit.update(positions="table", class_token=False, qkv_bias=False, eps=1e-5)  # MONAI's dialect
    network = segmenter(config)
    image = jax.random.uniform(jax.random.key(0), (1, edge, edge, edge, 1))
    labels = jax.random.randint(jax.random.key(1), image.shape[:-1], 0, config.classes)
    params = jax.jit(network.init)(jax.random.key(2), image)["params"]
    optimizer = optax.adamw(1e-4)
    forward = jax.jit(lambda params: network.apply({"params": params}, image))

    def update(params: Any, state: Any) -> tuple[Any, Any]:
        loss = lambda params: dice_cross_entropy(network.apply({"params": params}, image, True), labels).mean()  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    step, carried = jax.jit(update, donate_argnums=(0, 1)), (params, optimizer.init(params) if train else None)
    if train:
        del params  # the step takes it over

    def once() -> None:
        nonlocal carried
        if train:
            carried = jax.block_until_ready(step(*carried))
        else:
            jax.block_until_ready(forward(carried[0]))

    once()
    runtime.give_back_memory()  # as training does once it has compiled
    seconds, memory = timed(once, steps)
    return {"what": "brainseg_jax", "seconds": seconds, "memory": memory, "matmul": jax_matmul_peak()}


def monai_network(kind: str, edge: int, train: bool, steps: int) -> Result:
    """The same of MONAI's."""
    import torch
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNETR, SwinUNETR

    torch.manual_seed(0)
    torch.set_num_threads(runtime.cores())
    network = UNETR(1, 36, (edge, edge, edge)) if kind == "unetr" else SwinUNETR(1, 36, feature_size=48)
    image, labels = torch.rand(1, 1, edge, edge, edge), torch.randint(0, 36, (1, 1, edge, edge, edge))
    loss = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def once() -> None:
        if train:
            optimizer.zero_grad()
            loss(network(image), labels).backward()
            optimizer.step()
        else:
            with torch.no_grad():
                network(image)

    seconds, memory = timed(once, steps)
    return {"what": "MONAI", "seconds": seconds, "memory": memory, "matmul": torch_matmul_peak()}


WORKERS = {
    f"{whose} {case}": partial(worker, kind, edge, train)
    for case, (kind, edge, train, _) in CASES.items()
    for whose, worker in (("ours", our_network), ("monai", monai_network))
}
