"""What made scans cost: all that a crop undergoes before the network sees it, and the training step beside it."""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Result, in_process, timed
from benchmarks.presets import configured, written

from brainseg_jax.core import runtime

PRESET = "configs/finetune_unet.py:thirtythree,any"
SIZES = {"96³ at 2 mm": [], "160³ at 1 mm": ["data.spacing=1.0", "data.size=[192,192,192]", "data.crop=[160,160,160]"]}


def made(args: argparse.Namespace) -> tuple[str, Any]:
    """Milliseconds of a made crop, of a real one that is augmented alike, and of the small U-Net's step without either."""
    found = {}
    for name, changes in SIZES.items():
        with tempfile.TemporaryDirectory() as place:
            written(Path(place), PRESET, changes, plain=False)
            found[name] = in_process("made scans", args.steps, folder=Path(place))
    with tempfile.TemporaryDirectory() as place:
        written(Path(place), PRESET, [], plain=True)
        step = in_process("ours preset", max(2, args.steps // 4), folder=Path(place))
    lines = ["| crop | made, ms (mean) | the slowest | real, augmented alike, ms (mean) | compiling both, s |", "|---|---|---|---|---|"]
    for name, of in found.items():
        cells = [f"{1e3 * value:.0f}" for value in (statistics.mean(of["made"]), max(of["made"]), statistics.mean(of["real"]))]
        lines.append(f"| {name} | {' | '.join(cells)} | {of['compile']:.0f} |")
    seconds = statistics.median(step["seconds"])
    share = statistics.mean(next(iter(found.values()))["made"]) / seconds
    lines += [
        "",
        f"The small U-Net's step on one crop of 96³ takes {seconds:.2f} s without them; a made crop is {100 * share:.0f} % of that.",
    ]
    lines += ["", f"Each of {args.steps} crops with a key of its own, so every change at its chance of `{PRESET}`; batch 1, float32."]
    return "\n".join(lines), {"crops": found, "step": step}


def crops(steps: int, folder: Path) -> Result:
    """Seconds of crops, each with another key, made and real."""
    runtime.keep_compiled_programs()
    import time

    import jax

    from brainseg_jax.data.augment.prepare import prepare_train
    from brainseg_jax.data.labels import read_table, swap
    from brainseg_jax.data.synthesis.generator import generator
    from brainseg_jax.training.program import parts_of_batch

    config, target = configured(folder), read_table("seg33")
    config.synth.share = 0.0  # only what has labels alone is made: one program serves for both
    prepare = jax.jit(prepare_train(config, swap(target), generator(config, target)))
    found: Result = {"compile": 0.0}
    for kind in ("made", "real"):
        most = {"image": 255, "label": config.classes, "place": 1}
        parts = {name: part for name, part in parts_of_batch(config).items() if name in most}
        batch = {name: jax.random.randint(jax.random.key(0), (1, *shape), 0, most[name], dtype) for name, (shape, dtype) in parts.items()}
        batch["labels_only"] = jax.numpy.full((1,), kind == "made")
        keys = iter(jax.random.split(jax.random.key(2), steps + 1))
        began = time.perf_counter()
        jax.block_until_ready(prepare(next(keys), batch))
        found["compile"] += time.perf_counter() - began
        found[kind] = timed(lambda: jax.block_until_ready(prepare(next(keys), batch)), steps, warm=True)[0]  # noqa: B023
    return found


WORKERS = {"made scans": crops}
