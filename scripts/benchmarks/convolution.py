"""One 3-D convolution: ours, XLA's own and PyTorch's."""

import argparse
import statistics
from functools import partial
from typing import Any

from benchmarks.measure import Result, in_process, timed

from brainseg_jax.core import runtime

SHAPES = ((96, 1, 16), (96, 16, 16), (96, 32, 16), (48, 32, 32), (96, 48, 48), (48, 48, 48), (24, 96, 96), (12, 192, 192), (6, 384, 384))


def conv(args: argparse.Namespace) -> tuple[str, Any]:
    """Milliseconds of a forward pass, and of one with both gradients, in fresh processes by turns."""
    contestants = ["ours conv", "xla conv"] + (["torch conv"] if args.against else [])
    turns: dict[str, list[Result]] = {name: [] for name in contestants}
    for _ in range(args.turns):
        for name in contestants:
            turns[name].append(in_process(name, args.steps))
    lines = ["| edge, channels | pass | ours, ms | XLA's own, ms | PyTorch, ms |", "|---|---|---|---|---|"]
    for n, i, o in SHAPES:
        for which in ("forward", "all three"):
            key = f"{n} {i} {o} {which}"
            cells = [f"{1e3 * statistics.median([s for turn in turns[name] for s in turn[key]]):.1f}" for name in contestants]
            lines.append(f"| {n}³, {i} → {o} | {which} | " + " | ".join(cells + [""] * (3 - len(cells))) + " |")
    return "\n".join([*lines, "", "A 3³ convolution, batch 1, float32; all three: forward and the gradients to image and kernel."]), turns


def jax_conv(ours: bool, steps: int) -> Result:
    """Times of `conv3`, or of XLA's own convolution."""
    runtime.keep_compiled_programs()
    import jax

    from brainseg_jax.models import conv

    form = conv.conv3 if ours else conv._plain
    forward = jax.jit(form)
    both = jax.jit(lambda x, kernel, g: (form(x, kernel), jax.vjp(form, x, kernel)[1](g)))

    def of(n: int, i: int, o: int) -> Result:
        x, g = (jax.random.normal(jax.random.key(c), (1, n, n, n, c)) for c in (i, o))
        kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, i, o))
        return {
            f"{n} {i} {o} forward": timed(lambda: jax.block_until_ready(forward(x, kernel)), steps)[0],
            f"{n} {i} {o} all three": timed(lambda: jax.block_until_ready(both(x, kernel, g)), steps)[0],
        }

    return {key: seconds for shape in SHAPES for key, seconds in of(*shape).items()}


def torch_conv(steps: int) -> Result:
    """Times of PyTorch's convolution."""
    import torch

    torch.set_num_threads(runtime.cores())

    def of(n: int, i: int, o: int) -> Result:
        x, g = torch.randn(1, i, n, n, n, requires_grad=True), torch.randn(1, o, n, n, n)
        layer = torch.nn.Conv3d(i, o, 3, padding=1, bias=False)

        def forward() -> None:
            with torch.no_grad():
                layer(x)

        def both() -> None:
            x.grad = layer.weight.grad = None
            layer(x).backward(g)

        return {f"{n} {i} {o} forward": timed(forward, steps)[0], f"{n} {i} {o} all three": timed(both, steps)[0]}

    return {key: seconds for shape in SHAPES for key, seconds in of(*shape).items()}


WORKERS = {"ours conv": partial(jax_conv, True), "xla conv": partial(jax_conv, False), "torch conv": torch_conv}
