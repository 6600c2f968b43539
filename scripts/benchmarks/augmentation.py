"""What augmentation costs: every change by itself where it happens, what it comes to on average, and the training step beside it."""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Result, in_process, timed
from benchmarks.presets import configured, written

from brainseg_jax.core import runtime

CHANCES = {
    "mirror": "augment.mirror.sides",
    "affine": "augment.affine.chance",
    "elastic": "augment.elastic.chance",
    "contrast": "augment.contrast.chance",
    "bias field": "augment.bias.chance",
    "blur": "augment.blur.chance",
    "noise": "augment.noise.chance",
    "low resolution": "augment.low_resolution.chance",
    "cut": "augment.field_of_view.chance",
}
NETWORKS = {"UNETR": "configs/finetune_unetr.py", "Swin UNETR 48": "configs/finetune_swin_unetr.py"}
CHANGES = ["data.crop=[96,96,96]", "data.batch=1", "data.crops_per_volume=1", "remat=false"]  # one crop at a time, nothing recomputed


def augment(args: argparse.Namespace) -> tuple[str, Any]:
    """Milliseconds of each change of a crop, and their mean at the recipe's chances; then the share of each network's training step."""
    steps = {}
    for name, file in NETWORKS.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            written(folder, f"{file}:thirtythree,full", CHANGES, plain=True)
            steps[name] = in_process("ours preset", max(2, args.steps // 4), folder=folder)
            written(folder, f"{file}:thirtythree,full", CHANGES, plain=False)
            changes = in_process("augmentation", args.steps, folder=folder) if name == "UNETR" else changes
    plain = statistics.median(changes["none"]["seconds"])
    lines, mean = ["| change | ms where it happens | chance | ms a crop on average |", "|---|---|---|---|"], plain
    for name in CHANCES:
        cost, chance = statistics.median(changes[name]["seconds"]) - plain, changes[name]["chance"]
        mean += chance * cost
        lines.append(f"| {name} | {1e3 * cost:.0f} | {chance} | {1e3 * chance * cost:.0f} |")
    lines += [f"| in any case | {1e3 * plain:.0f} | | {1e3 * plain:.0f} |", f"| together | | | {1e3 * mean:.0f} |"]
    for name, result in steps.items():
        step = statistics.median(result["seconds"])
        lines += ["", f"{name}: the training step without augmentation takes {step:.2f} s, so augmentation adds {100 * mean / step:.1f} %."]
    lines += ["", "96³ crops with labels of 33 structures, batch 1, float32; chances of `configs/finetune_*.py:thirtythree,full`."]
    return "\n".join(lines), {"changes": changes, "steps": steps}


def chances(config: Any, values: dict[str, float]) -> Any:
    """The config with these chances, and every other change never."""
    config.update_from_flattened_dict({key: values.get(name, 0.0) for name, key in CHANCES.items()})
    return config


def each_change(steps: int, folder: Path) -> Result:
    """Seconds of what a batch undergoes with one change alone, always, and with none."""
    runtime.keep_compiled_programs()
    import jax
    import jax.numpy as jnp

    from brainseg_jax.config.keys import get_key
    from brainseg_jax.data.augment.prepare import enlarged_crop, prepare_train
    from brainseg_jax.data.labels import read_table, swap
    from brainseg_jax.training.program import parts_of_batch

    config, partners = configured(folder), swap(read_table("seg33"))

    def seconds(values: dict[str, float]) -> list[float]:
        changed = chances(configured(folder), values)
        prepare = jax.jit(prepare_train(changed, partners))
        # The first corner of a patch is a place like any other.
        most = {"image": 255, "label": config.classes, "place": 1}
        parts = parts_of_batch(changed) | {"label": (enlarged_crop(changed), jnp.uint8)}
        batch = {name: jax.random.randint(jax.random.key(0), (1, *shape), 0, most[name], dtype) for name, (shape, dtype) in parts.items()}
        return timed(lambda: jax.block_until_ready(prepare(jax.random.key(2), batch)), steps)[0]

    found = {name: {"seconds": seconds({name: 1.0}), "chance": get_key(config, key)} for name, key in CHANCES.items()}
    return found | {"none": {"seconds": seconds({})}}


WORKERS = {"augmentation": each_change}
