"""What all measurements share: fresh processes, times, memory, and the best matrix product of the machine."""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from brainseg_jax.core.errors import InputError

Result = dict[str, Any]

BENCHMARK = Path(__file__).parents[1] / "benchmark.py"


def in_process(worker: str, steps: int, *, huge_pages: bool = True, folder: Path | None = None, one_gpu: bool = False) -> Result:
    """A worker's result from a fresh process; `folder` holds what workers leave for each other. `one_gpu`: of several it sees the first."""
    command = [sys.executable, str(BENCHMARK), "--worker", worker, "--steps", str(steps)] + (["--folder", str(folder)] if folder else [])
    environment = dict(os.environ) | ({} if huge_pages else {"GLIBC_TUNABLES": ""})
    if one_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    said = done.stderr.strip().splitlines()[-1:]
    if done.returncode and said and said[0].startswith("error: "):
        raise InputError(said[0].removeprefix("error: "))
    if done.returncode:
        raise SystemExit(f"the worker {worker} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The three of them; of a single value that one."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else 3 * values
    return low, middle, high


def timed(once: Callable[[], Any], steps: int, *, warm: bool = False) -> tuple[list[float], int]:
    """Seconds of `steps` calls, and the most memory the process held in them, in bytes.

    A call before them does not count, unless all is warm already.
    """
    if not warm:
        once()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts again from here
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - began)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return seconds, int(line.split()[1]) * 1024


def per_second(batches: Iterator[Any], ahead: int, n: int) -> float:
    """How many of `n` come in a second, after the `ahead` first ones, which may have been read before they were asked for."""
    for _ in range(ahead):
        next(batches)
    began = time.perf_counter()
    for _ in range(n):
        next(batches)
    return n / (time.perf_counter() - began)


def jax_matmul_peak(dtype: str = "float32", n: int = 2048) -> float:
    """`matmul_peak` of XLA's product."""
    import jax
    import jax.numpy as jnp

    product, square = jax.jit(lambda a: a @ a), jnp.ones((n, n), dtype)
    return matmul_peak(lambda: jax.block_until_ready(product(square)), n)


def torch_matmul_peak(dtype: str = "float32", n: int = 2048) -> float:
    """`matmul_peak` of PyTorch's product; of its GPU's where there is one."""
    import torch

    on_gpu = torch.cuda.is_available()
    square = torch.ones(n, n, dtype=getattr(torch, dtype), device="cuda" if on_gpu else "cpu")

    def product() -> None:
        _ = square @ square
        if on_gpu:
            torch.cuda.synchronize()

    return matmul_peak(product, n)


def matmul_peak(product: Callable[[], Any], n: int = 2048) -> float:
    """FLOP/s of the fastest of many n³ products."""
    product()
    best = math.inf
    for _ in range(20):
        began = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best
