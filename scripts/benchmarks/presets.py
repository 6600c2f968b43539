"""A config as it trains: its compiled step alone, its input pipeline alone, and the main command as a whole.

    python scripts/benchmark.py --against monai                   the training steps of the four full-size networks
    python scripts/benchmark.py --preset configs/pretrain_vit.py:2mm --set data.batch=8 --against monai
    python scripts/benchmark.py --preset configs/finetune_swin_unetr.py:four,full --set data.batch=1 --mode e2e

On whatever devices there are; against a peer on one GPU, where it computes in bfloat16 too and is also compiled. Augmentation is left out
of the step that is compared with a peer, which has none.
"""

import argparse
import ast
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
from typing import Any, NamedTuple

import numpy as np
from benchmarks.measure import Result, in_process, jax_matmul_peak, per_second, quartiles, timed, torch_matmul_peak
from ml_collections import ConfigDict

from brainseg_jax.config.checks import check
from brainseg_jax.config.resolve import of_file, unknown_key
from brainseg_jax.core import runtime
from brainseg_jax.core.errors import InputError

FORMULA = (
    "MFU = FLOPs of our step by definition / seconds / FLOP/s of the best matrix product that any contestant reached. The FLOPs are "
    "read off the traced step (brainseg_jax/planning/flops.py): 2 per multiply-add of every product and convolution, forward and gradient. "
    "Forms with fewer operations count as the plain one. Memory: of the process while it steps, on a GPU what was allocated there."
)
# The full-size networks, with as small batches as train them: what the table is of where no preset is named.
FULL_SIZE = {
    "configs/pretrain_vit.py": ["data.batch=1"],
    "configs/pretrain_swin.py": ["data.batch=2"],
    "configs/finetune_unetr.py:thirtythree,2mm": ["data.batch=1"],
    "configs/finetune_swin_unetr.py:thirtythree,2mm": ["data.batch=1"],
}
SKIPPED = 3  # steps of a run that are not counted: the first ones wait for what is read ahead


def compute(args: argparse.Namespace) -> tuple[str, Any]:
    """The compiled step of each preset, contestants by turns; compiling told apart."""
    lines = [
        "| preset | | step, s (median) | IQR | p95 | crops/s a device | Mvoxels/s a device | MFU | peak memory, GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    notes, results = [], {}
    for preset, changes in presets(args).items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            config = written(folder, preset, changes, plain=bool(args.against))
            turns: dict[str, list[Result]] = {}
            failed: dict[str, str] = {}
            for _ in range(args.turns):
                one = in_process("ours preset", args.steps, folder=folder, one_gpu=bool(args.against))
                turns.setdefault("brainseg_jax", []).append(one)
                for rival, (worker, huge_pages) in rivals(one["platform"], config.encoder).items() if args.against else ():
                    if rival in failed:
                        continue
                    try:
                        turns.setdefault(rival, []).append(
                            in_process(worker, args.steps, huge_pages=huge_pages, folder=folder, one_gpu=True)
                        )
                    except SystemExit as error:  # a peer's fault takes nobody else's figures away
                        failed[rival] = str(error).strip().splitlines()[-1]
                        del turns[rival]
                last = (f"{name} {statistics.median(all_[-1]['seconds']):.3f} s" for name, all_ in turns.items())
                print(f"{preset}: {', '.join(last)}", file=sys.stderr)
        lines += [row(preset, name, turns, config) for name in turns]
        notes += about(preset, turns) + [f"- {preset}: {rival} failed: {why}" for rival, why in failed.items()]
        results[preset] = turns
    return "\n".join([*lines, "", *notes, "", FORMULA]), results


def presets(args: argparse.Namespace) -> dict[str, list[str]]:
    """The presets to measure, each with the changes KEY=VALUE of its values."""
    named = {preset: [] for preset in args.preset} if args.preset else FULL_SIZE
    return {preset: [*changes, *args.set] for preset, changes in named.items()}


def check_all(args: argparse.Namespace) -> None:
    """InputError for a preset that is none, and for a change that makes none of it."""
    for preset, changes in presets(args).items():
        with tempfile.TemporaryDirectory() as folder:
            written(Path(folder), preset, changes, plain=False)


def rivals(platform: str, encoder: str) -> dict[str, tuple[str, bool]]:
    """The peer's ways to run on a platform: its worker, and whether with huge pages. MONAI, but of the U-Net nnU-Net's own package."""
    peer = "nnU-Net's" if encoder == "resenc" else "MONAI"
    if platform == "cpu":
        return {f"{peer}, as installed": ("monai preset", False), peer: ("monai preset", True)}
    return {peer: ("monai preset", True), f"{peer}, torch.compile": ("monai compiled preset", True)}


def row(preset: str, name: str, turns: dict[str, list[Result]], config: ConfigDict) -> str:
    """A contestant's line of the table. All are measured by the FLOPs of our step: the same work, whoever does it."""
    seconds = [s for turn in turns[name] for s in turn["seconds"]]
    low, middle, high = quartiles(seconds)
    devices, crops, flop = turns[name][0]["devices"], config.data.batch, turns["brainseg_jax"][0]["flop"]
    rate = crops / middle / devices
    peak = max(turn["matmul"] for all_ in turns.values() for turn in all_)
    memory = max(turn["memory"] for turn in turns[name]) / 2**30
    return (
        f"| {preset}, batch {crops} | {name} | {middle:.3f} | {low:.3f}–{high:.3f} | {np.percentile(seconds, 95):.3f} | {rate:.3f} "
        f"| {rate * np.prod(config.data.crop) / 1e6:.2f} | {100 * flop / middle / devices / peak:.0f} % of {peak / 1e9:.0f} GFLOP/s "
        f"| {memory:.2f} |"
    )


def about(preset: str, turns: dict[str, list[Result]]) -> list[str]:
    """Compiling, what the compiler says of memory, whether all turns computed the same, and how the peer compares."""
    ours = turns["brainseg_jax"]
    cold, later = ours[0], ours[1:]
    cached = f", {statistics.median(turn['compile'] for turn in later):.1f} s from the compile cache" if later else ""
    ends = sorted({turn["checksum"] for turn in ours})
    same = f"all turns ended with the same weights to the bit ({ends[0]})" if len(ends) == 1 else f"turns ended differently: {ends}"
    lines = [
        f"- {preset}: {cold['dtype']}, {cold['flop'] / 1e9:.0f} GFLOP a step; tracing {cold['lower']:.1f} s, compiling "
        f"{cold['compile']:.1f} s{cached}; the compiler's estimate of memory {cold['estimate'] / 2**30:.2f} GiB a device; loss "
        f"{cold['loss']:.5f}, {same}"
    ]

    peak = max(turn["matmul"] for all_ in turns.values() for turn in all_)
    lines.append(f"- {preset}: its products alone take {cold['flop'] / peak / cold['devices']:.2f} s at the peak of the best one")

    def median(name: str, turn: int) -> float:
        return statistics.median(turns[name][turn]["seconds"])

    for name in list(turns)[1:]:
        ratios = [median(name, i) / median("brainseg_jax", i) for i in range(len(ours))]
        times = statistics.median(s for turn in turns[name] for s in turn["seconds"])
        times /= statistics.median(s for turn in ours for s in turn["seconds"])
        share = max(turn["memory"] for turn in ours) / max(turn["memory"] for turn in turns[name])
        each = f" (turn by turn {', '.join(f'{r:.2f}' for r in ratios)})" if len(ratios) > 1 else ""
        lines.append(f"- {preset}: {name} takes {times:.2f} times as long{each}; ours takes {share:.2f} of its memory")
    return lines


def e2e(args: argparse.Namespace) -> tuple[str, Any]:
    """The main command on the sample cohort: crops per second with reading, cropping and all, and how long steps waited for input."""
    lines = ["| preset | crops/s (median) | quartiles | waiting for input |", "|---|---|---|---|"]
    results = {}
    for preset, changes in presets(args).items():
        rates, waits = [], []
        for _ in range(args.turns):
            with tempfile.TemporaryDirectory() as name:
                run = Path(name) / "run"
                words = [f"--config.{change}" for change in changes]
                words += [f"--config.steps={args.steps + SKIPPED}", "--config.epochs=0", "--config.log_every=1", "--config.eval_every=0"]
                command = [sys.executable, "-m", "brainseg_jax.main", f"--config={preset}", f"--workdir={run}", *words]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
                read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                steps = [r for r in read if r["kind"] == "train"][SKIPPED:]
                rates += [r["crops_per_second"] for r in steps]
                waits += [r["input_wait"] for r in steps]
        low, middle, high = quartiles(rates)
        lines.append(f"| {preset} | {middle:.3f} | {low:.3f}–{high:.3f} | {100 * statistics.mean(waits):.1f} % |")
        results[preset] = {"crops_per_second": rates, "input_wait": waits}
    return "\n".join([*lines, "", "The sample cohort, cached; augmentation as the preset has it."]), results


def loader(args: argparse.Namespace) -> tuple[str, Any]:
    """Crops per second that the input pipeline gives a preset, with nothing else going on."""
    lines = ["| preset | threads | crops/s (median) | GB/s | crops/s a core |", "|---|---|---|---|---|"]
    results = {}
    for preset, changes in presets(args).items():
        with tempfile.TemporaryDirectory() as name:
            written(Path(name), preset, changes, plain=False)
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


def configured(folder: Path, on_cpu: bool = True) -> ConfigDict:
    """The config that a folder names, as it trains on a CPU or a GPU."""
    from brainseg_jax.training.program import resolve_auto

    told = json.loads((folder / "preset.json").read_text())
    config = of_file(told["preset"])
    for change in told["changes"]:
        key, given, value = change.partition("=")
        if fault := unknown_key(key) if given else "give KEY=VALUE":
            raise InputError(f"--set {change}: {fault}")
        for read in (json.loads, ast.literal_eval):  # else it is a word
            with contextlib.suppress(ValueError, SyntaxError):
                value = read(value) if isinstance(value, str) else value
        try:
            config.update_from_flattened_dict({key: tuple(value) if isinstance(value, list) else value})
        except TypeError as error:
            raise InputError(f"--set {change}: {error}") from None
    if told["plain"]:
        config.augment.chance = config.augment.mirror.sides = config.augment.mirror.others = config.synth.share = 0.0
        for kind in ("affine", "elastic", "contrast", "bias", "blur", "noise", "low_resolution", "field_of_view"):
            config.augment[kind].chance = 0.0
    resolve_auto(config, on_cpu)
    check(config)
    return config


class Step(NamedTuple):
    """A compiled step with what it takes, and how long it took to make it: traced and compiled, in seconds."""

    config: ConfigDict
    mesh: Any
    compiled: Any
    state: Any
    batch: dict[str, Any]
    lowering: float
    compiling: float


def step_of(folder: Path) -> Step:
    """The very program that training runs, and a batch of noise; the first process of a folder compiles anew."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    import jax

    from brainseg_jax.parallel import sharding
    from brainseg_jax.training.program import experiment, program

    config = configured(folder, jax.default_backend() == "cpu")
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, jax.devices())
    sharding.check_batch(config.data.batch, config.optim.accumulate, mesh)
    built = program(config, experiment(config), mesh, 1000)
    began = time.perf_counter()
    lowered = built.lower()
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    runtime.trim_memory()

    rng, top = np.random.default_rng(0), {"image": 256, "label": config.classes, "place": 1, "labels_only": 1}
    batch = {
        name: jax.device_put(rng.integers(0, top[name], like.shape).astype(like.dtype), like.sharding) for name, like in built.batch.items()
    }
    state = jax.jit(built.init, out_shardings=built.places)()
    return Step(config, mesh, compiled, state, batch, traced - began, done - traced)


def ours(steps: int, folder: Path) -> Result:
    """Seconds of `steps` training steps."""
    made = step_of(folder)
    import jax

    from brainseg_jax.planning.plan import analytic
    from brainseg_jax.training.memory import memory

    device, state, metrics = made.mesh.devices.flat[0], made.state, {}
    made = made._replace(state=None)  # the step takes it over

    def once() -> None:
        nonlocal state, metrics
        state, metrics = jax.block_until_ready(made.compiled(state, made.batch))

    seconds, held = timed(once, steps)
    on_cpu = device.platform == "cpu"
    weights = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.params)))
    return {
        "what": "brainseg_jax",
        "platform": device.platform,
        "device": device.device_kind,
        "devices": made.mesh.size,
        "dtype": made.config.dtype,
        "lower": made.lowering,
        "compile": made.compiling,
        "seconds": seconds,
        "memory": held if on_cpu else max(d.memory_stats()["peak_bytes_in_use"] for d in jax.local_devices()),
        "estimate": memory(made.compiled).needed,
        "flop": analytic(made.config)["step"],
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
        "matmul": torch_matmul_peak("bfloat16", 8192) if on_gpu else torch_matmul_peak(),
        "loss": loss(),
    }


def load(steps: int, folder: Path) -> Result:
    """Crops per second of the pipeline, after what was read ahead."""
    from brainseg_jax.core import progress
    from brainseg_jax.data import dataset, labels
    from brainseg_jax.data.augment.prepare import enlarged_crop
    from brainseg_jax.data.loader import train_batches

    config = configured(folder)
    data = config.data
    table = labels.read_table(data.labels) if config.objective == "segmentation" else None
    ready = dataset.prepare(data, table, lambda _: None, progress.progress)
    files = [entry.file for entry in ready.train]
    how = {"crop": data.crop, "patch": enlarged_crop(config), "crops_per_volume": data.crops_per_volume}
    batches = train_batches(files, **how, batch=data.batch, seed=0, start=0, threads=data.threads)
    size = sum(part.nbytes for part in next(batches).values())
    rate = data.batch * per_second(batches, 2 * data.threads + 1, steps)
    return {"threads": data.threads, "rate": rate, "bytes": size / data.batch}


WORKERS = {
    "ours preset": ours,
    "monai preset": monai,
    "monai compiled preset": partial(monai, compiled=True),
    "loader preset": load,
}
