"""A config as it trains: its compiled step alone, its input pipeline alone, and the main command as a whole.

    python scripts/benchmark.py --preset configs/pretrain_vit.py:2mm --mode compute --against monai
    python scripts/benchmark.py --preset configs/finetune_swin_unetr.py:four,full --set data.batch=1 --mode e2e

On whatever devices there are. Augmentation is left out of the step that is compared with a peer, which has none.
"""

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measure import Result, in_process, jax_matmul_peak, per_second, timed, torch_matmul_peak
from ml_collections import ConfigDict

from brainseg_jax import runtime
from brainseg_jax.config import check, of_file

FORMULA = "MFU = FLOPs of the step by definition (2 per multiply-add, forward and gradient) / seconds / FLOP/s of the best matrix product"
SKIPPED = 3  # steps of a run that are not counted: the first ones wait for what is read ahead


def compute(args: argparse.Namespace) -> tuple[str, Any]:
    """The compiled step of each preset, contestants by turns; compiling told apart."""
    lines = [
        "| preset | | step, s (median) | IQR | p95 | crops/s a device | Mvoxels/s a device | MFU | peak memory, GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    notes, results = [], {}
    for preset in args.preset:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            config = written(folder, preset, args.set, plain=bool(args.against))
            contestants = ["ours", *(["monai, as installed", "monai"] if args.against else [])]
            turns: dict[str, list[Result]] = {name: [] for name in contestants}
            for _ in range(args.turns):
                for name in contestants:
                    huge = name != "monai, as installed"
                    turns[name].append(in_process(f"{name.partition(',')[0]} preset", args.steps, huge_pages=huge, folder=folder))
                    print(f"{preset}, {name}: {statistics.median(turns[name][-1]['seconds']):.3f} s a step", file=sys.stderr)
        for name in contestants:
            lines.append(row(preset, name, turns[name], config))
        notes += about(preset, turns["ours"])
        medians = {name: statistics.median(s for turn in turns[name] for s in turn["seconds"]) for name in contestants}
        notes += [f"- {preset}: {name} takes {medians[name] / medians['ours']:.2f} times as long" for name in contestants[1:]]
        results[preset] = turns
    return "\n".join([*lines, "", *notes, "", f"{FORMULA}; analytic FLOPs are read off the traced step (planning/flops.py)."]), results


def row(preset: str, name: str, turns: list[Result], config: ConfigDict) -> str:
    """A contestant's line of the table."""
    seconds = [s for turn in turns for s in turn["seconds"]]
    low, middle, high = statistics.quantiles(seconds, n=4)
    devices, crops = turns[0]["devices"], config.data.batch
    rate = crops / middle / devices
    flop, peak = turns[0]["flop"], max(turn["matmul"] for turn in turns)
    share = f"{100 * flop / middle / devices / peak:.0f} % of {peak / 1e9:.0f} GFLOP/s" if flop else "–"
    memory = max(turn["memory"] for turn in turns) / 2**30
    return (
        f"| {preset}, batch {crops} | {name} | {middle:.3f} | {low:.3f}–{high:.3f} | {np.percentile(seconds, 95):.3f} | {rate:.3f} "
        f"| {rate * np.prod(config.data.crop) / 1e6:.2f} | {share} | {memory:.2f} |"
    )


def about(preset: str, turns: list[Result]) -> list[str]:
    """Compiling, what the compiler says of memory, and whether all turns computed the same."""
    cold, later = turns[0], turns[1:]
    cached = f", {statistics.median(turn['compile'] for turn in later):.1f} s from the compile cache" if later else ""
    ends = sorted({turn["checksum"] for turn in turns})
    same = f"all turns ended with the same weights to the bit ({ends[0]})" if len(ends) == 1 else f"turns ended differently: {ends}"
    return [
        f"- {preset}: {cold['flop'] / 1e9:.0f} GFLOP a step; tracing {cold['lower']:.1f} s, compiling {cold['compile']:.1f} s{cached}; "
        f"the compiler's estimate of memory {cold['estimate'] / 2**30:.2f} GiB a device; loss {cold['loss']:.5f}, {same}"
    ]


def e2e(args: argparse.Namespace) -> tuple[str, Any]:
    """The main command on the sample cohort: crops per second with reading, cropping and all, and how long steps waited for input."""
    lines = ["| preset | crops/s (median) | quartiles | waiting for input |", "|---|---|---|---|"]
    results = {}
    for preset in args.preset:
        rates, waits = [], []
        for _ in range(args.turns):
            with tempfile.TemporaryDirectory() as name:
                run = Path(name) / "run"
                words = [f"--config.{change}" for change in args.set]
                words += [f"--config.steps={args.steps + SKIPPED}", "--config.epochs=0", "--config.log_every=1", "--config.eval_every=0"]
                command = [sys.executable, "-m", "brainseg_jax.main", f"--config={preset}", f"--workdir={run}", *words]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
                read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                steps = [r for r in read if r["kind"] == "train"][SKIPPED:]
                rates += [r["crops_per_second"] for r in steps]
                waits += [r["input_wait"] for r in steps]
        low, middle, high = statistics.quantiles(rates, n=4)
        lines.append(f"| {preset} | {middle:.3f} | {low:.3f}–{high:.3f} | {100 * statistics.mean(waits):.1f} % |")
        results[preset] = {"crops_per_second": rates, "input_wait": waits}
    return "\n".join([*lines, "", "The sample cohort, cached; augmentation as the preset has it."]), results


def loader(args: argparse.Namespace) -> tuple[str, Any]:
    """Crops per second that the input pipeline gives a preset, with nothing else going on."""
    lines = ["| preset | threads | crops/s (median) | GB/s | crops/s a core |", "|---|---|---|---|---|"]
    results = {}
    for preset in args.preset:
        with tempfile.TemporaryDirectory() as name:
            written(Path(name), preset, args.set, plain=False)
            found = [in_process("loader preset", args.steps, folder=Path(name)) for _ in range(args.turns)]
        rate = statistics.median(turn["rate"] for turn in found)
        first = found[0]
        lines.append(f"| {preset} | {first['threads']} | {rate:.1f} | {rate * first['bytes'] / 1e9:.2f} | {rate / runtime.cores():.1f} |")
        results[preset] = found
    return "\n".join([*lines, "", "Cached volumes of the sample cohort, files in the page cache, one process."]), results


# ---- what runs in processes of their own


def written(folder: Path, preset: str, changes: list[str], plain: bool) -> ConfigDict:
    """The preset with changes KEY=VALUE, also left in the folder for the workers; `plain`: without augmentation."""
    (folder / "preset.json").write_text(json.dumps({"preset": preset, "changes": changes, "plain": plain}))
    return configured(folder)


def configured(folder: Path) -> ConfigDict:
    """The config that a folder names, with the classes of its labels, as it trains here."""
    from brainseg_jax.data.labels import read_table

    told = json.loads((folder / "preset.json").read_text())
    config = of_file(told["preset"])
    for change in told["changes"]:
        key, _, value = change.partition("=")
        with contextlib.suppress(ValueError):  # a word
            value = json.loads(value)
        config.update_from_flattened_dict({key: tuple(value) if isinstance(value, list) else value})
    if told["plain"]:
        config.augment.chance = config.augment.mirror.sides = config.augment.mirror.others = 0.0
        for kind in ("affine", "elastic", "contrast", "bias", "blur", "noise", "low_resolution", "cut"):
            config.augment[kind].chance = 0.0
    if config.objective == "segmentation" and config.data.labels and not config.classes:
        config.classes = 1 + len(read_table(config.data.labels).structures)
    check(config)
    return config


def ours(steps: int, folder: Path) -> Result:
    """Seconds of `steps` steps of the very program that training runs, on noise; the first process of a folder compiles anew."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    import jax

    from brainseg_jax import sharding
    from brainseg_jax.data import labels
    from brainseg_jax.objectives import OBJECTIVES
    from brainseg_jax.plan import analytic
    from brainseg_jax.planning.memory import memory
    from brainseg_jax.program import program, settle

    config, on_cpu = configured(folder), jax.default_backend() == "cpu"
    settle(config, on_cpu)
    objective = OBJECTIVES[config.objective](config)
    table = labels.read_table(config.data.labels) if objective.labels else None
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, jax.devices())
    sharding.check_batch(config.data.batch, config.optim.accumulate, mesh)
    built = program(config, objective, mesh, 1000, table)
    began = time.perf_counter()
    lowered = built.lower()
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    runtime.give_back_memory()

    rng, top = np.random.default_rng(0), {"image": 256, "label": config.classes}
    batch = {
        name: jax.device_put(rng.integers(0, top[name], like.shape).astype(like.dtype), like.sharding) for name, like in built.batch.items()
    }
    state, metrics = jax.jit(built.init, out_shardings=built.places)(), {}

    def once() -> None:
        nonlocal state, metrics
        state, metrics = jax.block_until_ready(compiled(state, batch))

    seconds, held = timed(once, steps)
    weights = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.params)))
    return {
        "what": "brainseg_jax",
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "lower": traced - began,
        "compile": done - traced,
        "seconds": seconds,
        "memory": held if on_cpu else max(d.memory_stats()["peak_bytes_in_use"] for d in jax.local_devices()),
        "estimate": memory(compiled).needed,
        "flop": analytic(config)["step"],
        "matmul": jax_matmul_peak() if on_cpu else jax_matmul_peak("bfloat16", 8192),
        "loss": float(metrics["loss"][0] / metrics["loss"][1]),
        "checksum": weights.hexdigest()[:12],
    }


def monai(steps: int, folder: Path, compiled: bool = False) -> Result:
    """The same of MONAI's parts."""
    import torch
    from benchmarks.peers import training

    once, loss = training(configured(folder), compiled)
    seconds, held = timed(once, steps)
    on_gpu = torch.cuda.is_available()
    return {
        "what": "MONAI",
        "devices": 1,
        "seconds": seconds,
        "memory": torch.cuda.max_memory_allocated() if on_gpu else held,
        "flop": 0,
        "matmul": torch_matmul_peak(),
        "loss": loss(),
    }


def load(steps: int, folder: Path) -> Result:
    """Crops per second of the pipeline, after what was read ahead."""
    from brainseg_jax import record
    from brainseg_jax.data import dataset, labels
    from brainseg_jax.data.pipeline import train_batches

    config = configured(folder)
    data = config.data
    table = labels.read_table(data.labels) if config.objective == "segmentation" else None
    ready = dataset.prepare(data, table, folder, lambda _: None, record.progress)
    files = [entry.file for entry in ready.train]
    batches = train_batches(
        files, crop=data.crop, crops_per_volume=data.crops_per_volume, batch=data.batch, seed=0, start=0, threads=data.threads
    )
    size = sum(part.nbytes for part in next(batches).values())
    rate = data.batch * per_second(batches, 2 * data.threads + 1, steps)
    return {"threads": data.threads, "rate": rate, "bytes": size / data.batch}


WORKERS = {
    "ours preset": ours,
    "monai preset": monai,
    "monai compiled preset": partial(monai, compiled=True),
    "loader preset": load,
}
