"""Makes what lies beside it: a cohort of four tiny heads, a run that ended, a run that was stopped half-way, and a network as one file.

They were written by version 0.1.0 as it was before cards and run records had a format number, and stay as they are: later versions have to
go on with them (tests/test_frozen.py). To freeze the form of a later version too, run `python make.py FOLDER` there, and add the folder.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from brainseg_jax import load
from brainseg_jax.config.keys import base
from brainseg_jax.config.resolve import with_sources
from brainseg_jax.data import cache
from brainseg_jax.data.manifest import Row, write_manifest
from brainseg_jax.data.nifti_write import write
from brainseg_jax.training.loop import train
from brainseg_jax.training.metrics_log import Writer
from brainseg_jax.training.program import resolve_auto

# What a ViT UNETR needs at least; paths are relative, so that it can be gone on with wherever the folder lies.
CONFIG = {
    "objective": "segmentation",
    "data.labels": "brain",
    "classes": 0,
    "steps": 30,
    "eval_every": 0.0,
    "log_every": 5,
    "mesh.data": 1,
    "data.manifest": "people.tsv",
    "data.cache": "cache",
    "data.batch": 2,
    "data.threads": 1,
    "optim.lr": 3e-2,
    "data.spacing": 4.0,
    "data.size": (32, 32, 32),
    "data.crop": (32, 32, 32),
    "augment.mirror.sides": 0.5,
    "vit.width": 6,
    "vit.heads": 1,
    "vit.hidden": 12,
    "vit.depth": 4,
    "vit.features": (0, 1, 2),
    "unetr.width": 1,
}


def cohort() -> None:
    """Ellipsoids with texture, 40³ voxels of 4 mm, and masks of where they are bright."""
    rng = np.random.default_rng(1)
    at = (np.indices((40, 40, 40)).reshape(3, -1).T - 19.5) / (15, 17, 16)
    inside = (np.sum(at**2, axis=1) < 1).reshape(40, 40, 40)
    rows = []
    for i, split in enumerate(("train", "train", "train", "val")):
        image, mask = Path(f"head{i}.nii.gz"), Path(f"mask{i}.nii.gz")
        voxels = np.where(inside, rng.integers(18, 22, inside.shape) + i, rng.integers(0, 2, inside.shape)).astype(np.uint8)
        write(image, voxels, np.diag([4.0, 4.0, 4.0, 1.0]))
        write(mask, (voxels > 9).astype(np.uint8), np.diag([4.0, 4.0, 4.0, 1.0]))
        rows.append(Row(f"head{i}", "", image.absolute(), (mask.absolute(),), ("brain",), "made", split))
    write_manifest("people.tsv", rows)


def run(folder: str, stop: int | None = None) -> None:
    """The run, stopped as by SIGTERM after step `stop`, without pictures, TensorBoard files and what machine it was."""
    config = base()
    config.update_from_flattened_dict(CONFIG)
    resolved = with_sources(config, set(), "frozen.py")
    resolve_auto(config, True, resolved)
    progress = Writer.progress

    def stopping(writer: Writer, step: int, *what) -> None:
        progress(writer, step, *what)
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    Writer.progress = stopping
    train(config, resolved, Path(folder))
    Writer.progress = progress
    for left_out in ("pictures", "tb"):
        shutil.rmtree(Path(folder) / left_out, ignore_errors=True)
    facts = json.loads((Path(folder) / "run.json").read_text())
    facts["environment"]["machine"] = {"system": "Linux", "cores": 2, "processor": "x86_64"}
    (Path(folder) / "run.json").write_text(json.dumps(facts, indent=1) + "\n")


def network() -> None:
    """The finished run's network as one file, and the classes that it gives a head; 255 where rounding could decide."""
    trained = load("ended/checkpoints/30")
    trained.save("network.safetensors")
    image = cache.load(next(f for f in sorted(Path("cache/volumes").glob("head3_*.npz"))))["image"]
    logits = np.asarray(trained.logits(image[None, ..., None] / np.float32(255))[0])
    classes = np.where(np.abs(logits[..., 1] - logits[..., 0]) < 1e-2, 255, logits.argmax(-1)).astype(np.uint8)
    print("classes", np.unique(classes, return_counts=True))
    np.savez_compressed("predicted.npz", image=image, classes=classes)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True)
    os.chdir(sys.argv[1])
    cohort()
    run("ended")
    run("stopped", 15)
    network()
    shutil.rmtree("cache")
