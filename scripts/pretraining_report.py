"""What a pretraining run has learned, for the documents: curves, held-out error against a mean image, reconstructions without a face.

    python scripts/pretraining_report.py runs/pretrain_vit_2mm --out docs/pretraining_2mm --credit "Images: …"

Writes OUT.md, OUT_curve.png and OUT_reconstruction.png. The mean image is that of the training volumes' central crops; both are judged on
the same hidden voxels of the same held-out crops as the run's own evaluation.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot
from reports import command, publish

from brainseg_jax.cli.arguments import Parser
from brainseg_jax.config.resolve import known_entries, of_card, used_value
from brainseg_jax.core.errors import InputError, exit_code
from brainseg_jax.data import dataset
from brainseg_jax.data.augment.prepare import prepare_eval
from brainseg_jax.data.cache import load
from brainseg_jax.data.loader import central_crop, eval_batches
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.qc import figures
from brainseg_jax.training import run_records
from brainseg_jax.training.metrics_log import read_metrics
from brainseg_jax.training.step import eval_streams
from brainseg_jax.weights import checkpoint

# Above and behind the face.
FACELESS = ((2, "axial", 0.72), (2, "axial", 0.62), (1, "coronal", 0.3))

ERRORS = {"mae": "squared", "ssl": "absolute"}
# What is drawn of each objective, a panel for each measure.
PANELS = {
    "mae": {"loss": "mean squared error, hidden patches"},
    "ssl": {
        "rotation_accuracy": "rotation, share right",
        "contrast_top1": "contrast, share right",
        "reconstruction": "mean absolute error, whole crop",
        "loss": "sum of the three losses",
    },
}


def main() -> int:
    """Writes the report. Returns the exit code."""
    parser = Parser("python scripts/pretraining_report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--out", type=Path, required=True, help="where to write, without suffix")
    parser.add_argument("--credit", required=True, help="whose images they are, and under which terms pictures of them are shared")
    return exit_code(lambda: publish((args := parser.parse_args()).out, lambda: describe(args.run, args.out, args.credit)))


def describe(run: Path, out: Path, credit: str) -> str:
    """Makes the pictures and returns the text beside them."""
    steps = sorted(int(folder.name) for folder in (run / "checkpoints").glob("[0-9]*"))
    if not steps:
        raise InputError(f"{run}: has no checkpoint; give the folder of a finished run")
    params, card = checkpoint.load(run / "checkpoints" / str(steps[-1]))
    config, facts = of_card(card, run), run_records.read(run / "run.json")
    config.dtype = used_value(known_entries(card["config"], str(run)), "dtype")
    data = dataset.prepare(config.data, None, lambda _: None, lambda _: lambda done, total: None, config.channels)
    run_records.check_same_data(run, data)
    mean = mean_image([entry.file for entry in data.train], config.data.crop)
    model, baseline, shown = judge(params, config, data, mean)
    rows = read_metrics(run / "metrics.jsonl")
    lines = {"loss": ("mean image, held out", baseline)} if config.objective == "mae" else {}
    curves(rows, PANELS[config.objective], lines, out.with_name(f"{out.name}_curve.png"))
    picture(shown, data.spec.orientation, out.with_name(f"{out.name}_reconstruction.png"), steps[-1])
    environment = facts["environment"]
    return f"""# Pretraining on real heads: {config.objective} of {config.encoder}

Written by `scripts/pretraining_report.py` from a run of

    {command(facts)}

{len(data.train)} people to train on, {len(data.val)} held out; {steps[-1]} of {card["steps"]} steps of {config.data.batch} crops
{config.data.crop} at {config.data.spacing:g} mm; {facts["parameters"]["all"]:,} parameters; {config.dtype} on
{environment["machine"]["processor"]}, {environment["machine"]["cores"]} cores; JAX {environment["packages"]["jax"]}.

| mean {ERRORS[config.objective]} error on hidden voxels of held-out people (intensities in [0, 1]) | |
|---|---|
| mean image of the training people | {baseline:.5f} |
| this model | {model:.5f} |
| ratio | {model / baseline:.2f} |
{measures(rows, PANELS[config.objective], config)}
![curves]({out.name}_curve.png)

![held-out reconstruction]({out.name}_reconstruction.png)

{credit} The slices hold no face.
"""


def mean_image(files: list[Path], crop: tuple[int, int, int]) -> np.ndarray:
    """The voxelwise mean [x y z] of the volumes' central crops, of their first channel, in [0, 1]."""
    total = np.zeros(crop)
    for file in files:
        total += np.asarray(prepare_eval(None, {"image": jnp.asarray(central_crop(load(file)["image"], crop))[None]})["image"])[0, ..., 0]
    return total / len(files)


def judge(params: Any, config: Any, data: dataset.Dataset, mean: np.ndarray) -> tuple[float, float, dict[str, np.ndarray]]:
    """Errors of the model and of the mean image on the same hidden voxels, and the first held-out person's pictures."""
    objective = OBJECTIVES[config.objective](config)
    pictures = jax.jit(lambda batch, rngs: objective.apply({"params": params}, batch, method="pictures", rngs=rngs))
    error = {"squared": np.square, "absolute": np.abs}[ERRORS[config.objective]]
    errors, shown = [], {}
    files = [entry.file for entry in data.val][: config.eval_volumes]
    for index, raw in enumerate(eval_batches(files, crop=config.data.crop, batch=config.data.batch)):
        key, rngs = eval_streams(objective, config.seed, index)
        drawn = pictures(prepare_eval(key, {"image": jnp.asarray(raw["image"])}), rngs)
        for i in np.flatnonzero(raw["weight"]):
            original, masked, filled = (np.asarray(volume)[i, ..., 0] for volume in drawn)
            hidden = masked != original  # NaN is hidden, too
            if hidden.any():
                errors.append((np.mean(error(filled - original)[hidden]), np.mean(error(mean - original)[hidden])))
            shown = shown or dict(zip((*objective.picture_names, "mean image"), (original, masked, filled, mean), strict=True))
    model, baseline = np.mean(errors, axis=0)
    return float(model), float(baseline), shown


def measures(rows: list[dict[str, Any]], panels: dict[str, str], config: Any) -> str:
    """Of held-out crops: every measure at the first evaluation, at the last, and by guessing; nothing where there is one measure only."""
    validation = [row for row in rows if row["kind"] == "eval"]
    guessing = {"rotation_accuracy": 1 / 4, "contrast_top1": 1 / (2 * config.data.batch - 1)}
    lines = ["", "| held out | at the beginning | at the end | by guessing |", "|---|---|---|---|"]
    for name, what in panels.items():
        guess = f"{guessing[name]:.2f}" if name in guessing else ""
        lines.append(f"| {what} | {validation[0][name]:.3f} | {validation[-1][name]:.3f} | {guess} |")
    grid = " × ".join(str(n // 2 ** (len(config.swin.depths) + 1)) for n in config.data.crop)
    lines += [
        "",
        f"The reconstruction is decoded from the deepest map alone, {grid} positions, so it is blurred.",
    ]
    return "\n".join([*lines, ""]) if len(panels) > 1 else ""


def curves(rows: list[dict[str, Any]], panels: dict[str, str], lines: dict[str, tuple[str, float]], file: Path) -> None:
    """A panel for each measure, with a dashed line where `lines` gives a name and a height."""
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.4 * len(panels) + 1.5, 3.6), layout="constrained", squeeze=False)
    for panel, (name, what) in zip(axes[0], panels.items(), strict=True):
        for kind, called in (("train", "training"), ("eval", "held out")):
            found = [(row["step"], row[name]) for row in rows if row["kind"] == kind]
            panel.plot(*zip(*found, strict=True), label=called, marker="o" if kind == "eval" else None, ms=3)
        if name in lines:
            panel.axhline(lines[name][1], color="gray", linestyle="--", label=lines[name][0])
        panel.set(xlabel="step", title=what, yscale="linear" if what.endswith("right") else "log")
    axes[0, 0].legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def picture(shown: dict[str, np.ndarray], orientation: str, file: Path, step: int) -> None:
    volumes = {name: figures.to_ras(volume, orientation) for name, volume in shown.items()}
    figures.slices(file, volumes, f"a held-out person after {step} steps", FACELESS)


if __name__ == "__main__":
    sys.exit(main())
