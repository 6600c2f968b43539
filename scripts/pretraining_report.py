"""What a pretraining run has learned, for the documents: curve, held-out loss against a mean image, reconstructions without a face.

    python scripts/pretraining_report.py runs/pretrain_vit_2mm --out docs/pretraining_2mm --credit "Images: …"

Writes OUT.md, OUT_curve.png and OUT_reconstruction.png. The mean image is that of the training volumes' central crops; both are judged on
the same hidden patches of the same held-out crops as the run's own evaluation.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot

from brainseg_jax import checkpoint, record, report
from brainseg_jax.config import from_resolved
from brainseg_jax.data import dataset
from brainseg_jax.data.augment import prepare_eval
from brainseg_jax.data.cache import load
from brainseg_jax.data.pipeline import central_crop, eval_batches
from brainseg_jax.errors import InputError
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.step import eval_streams
from brainseg_jax.writer import read_metrics

# Above and behind the face.
FACELESS = ((2, "axial", 0.72), (2, "axial", 0.62), (1, "coronal", 0.3))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--out", type=Path, required=True, help="where to write, without suffix")
    parser.add_argument("--credit", required=True, help="whose images they are, and under which terms pictures of them are shared")
    args = parser.parse_args()
    try:
        text = describe(args.run, args.out, args.credit)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.with_suffix(".md").write_text(text)
    print(text)
    return 0


def describe(run: Path, out: Path, credit: str) -> str:
    """Makes the pictures and returns the text beside them."""
    steps = sorted(int(folder.name) for folder in (run / "checkpoints").glob("[0-9]*"))
    if not steps:
        raise InputError(f"{run}: has no checkpoint; give the folder of a finished run")
    params, card = checkpoint.load(run / "checkpoints" / str(steps[-1]))
    config, facts = from_resolved(card["config"]), json.loads((run / "run.json").read_text())
    with tempfile.TemporaryDirectory() as elsewhere:  # the run's own split and failures stay as they are
        data = dataset.prepare(config.data, None, Path(elsewhere), lambda _: None, lambda _: lambda done, total: None)
    record.check_same_data(run, data)
    mean = mean_image([entry.file for entry in data.train], config.data.crop)
    model, baseline, shown = judge(params, config, data, mean)
    curve(run, out.with_name(f"{out.name}_curve.png"), baseline)
    picture(shown, data.spec.orientation, out.with_name(f"{out.name}_reconstruction.png"), steps[-1])
    environment = facts["environment"]
    return f"""# Pretraining on real heads: {config.objective} of {config.encoder}

Written by `scripts/pretraining_report.py` from a run of

    {command(facts["starts"][0]["command"])}

{len(data.train)} people to train on, {len(data.val)} held out; {steps[-1]} of {card["steps"]} steps of {config.data.batch} crops
{config.data.crop} at {config.data.spacing:g} mm; {facts["parameters"]["all"]:,} parameters; {config.dtype} on
{environment["machine"]["processor"]}, {environment["machine"]["cores"]} cores; JAX {environment["packages"]["jax"]}.

| mean squared error on hidden patches of held-out people (intensities in [0, 1]) | |
|---|---|
| mean image of the training people | {baseline:.5f} |
| this model | {model:.5f} |
| ratio | {model / baseline:.2f} |

![curve]({out.name}_curve.png)

![held-out reconstruction]({out.name}_reconstruction.png)

{credit} The slices hold no face.
"""


def command(started: str) -> str:
    """How the run was started, without the places of its files."""
    words = [w for w in started.split()[1:] if not w.startswith(("--workdir", "--config.data.manifest", "--config.data.cache"))]
    return " ".join(["python -m brainseg_jax.main", *words, "--config.data.manifest=people.tsv"])


def mean_image(files: list[Path], crop: tuple[int, int, int]) -> np.ndarray:
    """The voxelwise mean [x y z] of the volumes' central crops, in [0, 1]."""
    total = np.zeros(crop)
    for file in files:
        total += np.asarray(prepare_eval(None, {"image": jnp.asarray(central_crop(load(file)["image"], crop))})["image"])
    return total / len(files)


def judge(params: Any, config: Any, data: dataset.Dataset, mean: np.ndarray) -> tuple[float, float, dict[str, np.ndarray]]:
    """Errors of the model and of the mean image on the same hidden voxels, and the first held-out person's pictures."""
    objective = OBJECTIVES[config.objective](config)
    pictures = jax.jit(lambda batch, rngs: objective.apply({"params": params}, batch, method="pictures", rngs=rngs))
    errors, shown = [], {}
    files = [entry.file for entry in data.val][: config.eval_volumes]
    for index, raw in enumerate(eval_batches(files, crop=config.data.crop, batch=config.data.batch)):
        key, rngs = eval_streams(objective, config.seed, index)
        original, masked, filled = map(np.asarray, pictures(prepare_eval(key, {"image": jnp.asarray(raw["image"])}), rngs))
        for i in np.flatnonzero(raw["weight"]):
            hidden = np.isnan(masked[i, ..., 0])
            truth = original[i, ..., 0][hidden]
            errors.append((np.mean((filled[i, ..., 0][hidden] - truth) ** 2), np.mean((mean[hidden] - truth) ** 2)))
        if not shown:
            names = (*objective.picture_names, "mean image")
            shown = dict(zip(names, (original[0, ..., 0], masked[0, ..., 0], filled[0, ..., 0], mean), strict=True))
    model, baseline = np.mean(errors, axis=0)
    return float(model), float(baseline), shown


def curve(run: Path, file: Path, baseline: float) -> None:
    rows = read_metrics(run / "metrics.jsonl")
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for kind, name in (("train", "training"), ("eval", "held out")):
        found = [(row["step"], row["loss"]) for row in rows if row["kind"] == kind]
        axes.plot(*zip(*found, strict=True), label=name, marker="o" if kind == "eval" else None, ms=3)
    axes.axhline(baseline, color="gray", linestyle="--", label="mean image, held out")
    axes.set(xlabel="step", ylabel="mean squared error", yscale="log")
    axes.legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def picture(shown: dict[str, np.ndarray], orientation: str, file: Path, step: int) -> None:
    volumes = {name: report.to_ras(volume, orientation) for name, volume in shown.items()}
    report.slices(file, volumes, f"a held-out person after {step} steps", FACELESS)


if __name__ == "__main__":
    sys.exit(main())
