"""Our attention against jax.nn.dot_product_attention."""

import argparse
import statistics
import time
from typing import Any

from brainseg_jax.core import runtime


def attention(args: argparse.Namespace) -> tuple[str, Any]:
    """Forward and gradient of one layer's attention, the two forms by turns."""
    runtime.keep_compiled_programs()
    import jax

    from brainseg_jax.models.attention import attend

    lines = ["| tokens, heads, width of a head | ours, ms | jax.nn.dot_product_attention, ms | ratio |", "|---|---|---|---|"]
    results = []
    for n, heads, width in ((1001, 16, 32), (151, 12, 64), (1000, 12, 64)):
        q, k, v = jax.random.normal(jax.random.key(0), (3, 1, n, heads, width))
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        calls = {}
        for name, form in (("ours", attend), ("theirs", jax.nn.dot_product_attention)):
            gradient = jax.jit(jax.grad(lambda q, k, v, form=form: (form(q, k, v) ** 2).sum(), argnums=(0, 1, 2)))
            calls[name] = lambda gradient=gradient, q=q, k=k, v=v: jax.block_until_ready(gradient(q, k, v))
            calls[name]()
        for _ in range(4 * args.turns):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                times[name].append(1e3 * (time.perf_counter() - began))
        a, b = (statistics.median(times[name]) for name in ("ours", "theirs"))
        results.append({"tokens": n, "heads": heads, "width": width, "milliseconds": times})
        lines.append(f"| {n}, {heads}, {width} | {a:.1f} | {b:.1f} | {b / a:.1f} |")
    return "\n".join([*lines, "", "Forward and gradient, float32, batch 1."]), results
