"""What is handed on of a run: the very weights that were judged, what held-out people are like, and how it came to be."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import brainseg_jax
from brainseg_jax.config.resolve import with_sources
from brainseg_jax.data.manifest import read_manifest, write_manifest
from brainseg_jax.data.nifti import read, read_labels
from brainseg_jax.evaluation.metrics import score
from brainseg_jax.inference.predictor import predictor
from brainseg_jax.inference.segmentation import prepare, segment
from brainseg_jax.training.loop import train

ROOT = Path(__file__).parents[2]
FINE = {
    "objective": "segmentation", "data.labels": "brain", "classes": 2, "unetr.width": 4, "optim.lr": 3e-3,
    "data.crop": (32, 32, 32), "vit.patch": 16, "vit.depth": 4, "vit.features": (0, 1, 2),
}  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def people(masked, tmp_path_factory):
    """Two heads to train on, one to choose by, one to test with."""
    file = tmp_path_factory.mktemp("people") / "people.tsv"
    splits = ("train", "train", "test", "val")
    write_manifest(file, [row._replace(split=split) for row, split in zip(read_manifest(masked), splits, strict=True)])
    return file


@pytest.fixture(scope="module")
def checkpoint(small, people, masked):
    """Of a run that began with the network of another one."""
    folder = people.parent
    for name, changes in (("first", {"steps": 20}), ("second", {"steps": 10, "init.parts": ("encoder", "decoder", "head")})):
        before = {"init.checkpoint": str(folder / "first" / "checkpoints" / "20")} if name == "second" else {}
        config = small(**{"data.manifest": str(people), "data.cache": str(masked.parent)} | FINE | changes | before)
        train(config, with_sources(config, set(), "test.py"), folder / name)
    return folder / "second" / "checkpoints" / "10"


def release(*words):
    command = [sys.executable, str(ROOT / "scripts" / "release.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_file_is_what_its_card_says(checkpoint, people, tmp_path):
    (tmp_path / "about.md").write_text("Of made-up heads.\n")
    out, splits = tmp_path / "made.safetensors", checkpoint.parents[1] / "split.tsv"
    code, said, err = release(checkpoint, "--manifest", people, "--splits", splits, "--about", tmp_path / "about.md", "--out", out)
    assert code == 0, err
    network, by = brainseg_jax.load(out), predictor([out])
    # Half precision, and no place of this machine.
    theirs = brainseg_jax.load(checkpoint)
    np.testing.assert_allclose(network.params["head"]["kernel"], theirs.params["head"]["kernel"], atol=1e-3)
    assert str(people.parent) not in said + out.read_bytes().decode("latin1")
    # Dice is of the one person to test with, by the file itself; the cohort are both who are held out.
    row = next(row for row in read_manifest(people) if row.split == "test")
    scan, reference = read(row.image), read_labels(row.labels[0]).voxels
    dice = score(segment(by, prepare(by, [scan], ["head"])).classes, reference, 2, (4.0, 4.0, 4.0), ("dice",))["dice"][1]
    assert network.card["dice"] == {"skull": {"Brain": pytest.approx(dice)}} and 0.5 < dice < 1
    mean, spread, n = by.cohort()["Brain"]
    assert n == 2 and spread > 0 and mean == pytest.approx((reference > 0).sum() * 0.064, rel=0.5)
    text = out.with_suffix(".md").read_text()
    assert "Of made-up heads." in text and text.index("# 20 of 20 steps") < text.index("# 10 of 10 steps")


def test_what_is_missing_is_one_line(checkpoint, people, tmp_path):
    (tmp_path / "about.md").write_text("")
    words = ("--about", tmp_path / "about.md", "--out", tmp_path / "made.safetensors")
    code, _, err = release(checkpoint, *words)
    assert (code, err.count("\n")) == (2, 1) and "--manifest and --splits are missing" in err
    write_manifest(tmp_path / "bare.tsv", [row._replace(labels=(), scheme=()) for row in read_manifest(people)])
    code, _, err = release(checkpoint, "--manifest", tmp_path / "bare.tsv", "--splits", checkpoint.parents[1] / "split.tsv", *words)
    assert (code, err.count("\n")) == (2, 1) and "none of the held-out people has labels" in err
    assert not (tmp_path / "made.safetensors").exists()
