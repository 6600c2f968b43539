"""The networks that come with the package, on a head that comes with it and was not trained on: the MNI template, with its aseg."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import brainseg_jax
from brainseg_jax.data.labels import lookup, read_table, voxel_ids
from brainseg_jax.data.nifti import Scan, read, read_labels, reorient
from brainseg_jax.evaluation.metrics import score
from brainseg_jax.inference.predictor import predictor
from brainseg_jax.pretrained import NETWORKS

SAMPLE = Path(str(resources.files("brainseg_jax.data") / "sample_files"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=NETWORKS)
def by(request):
    return predictor([request.param])


@pytest.fixture(scope="module")
def head():
    return read(SAMPLE / "mni_sym09c_T1_head.nii.gz")


@pytest.fixture(scope="module")
def found(by, head):
    return brainseg_jax.predict(head, by)


def dice(found, table, file, scheme):
    reference, source, table = read_labels(SAMPLE / file).voxels, read_table(scheme), read_table(table)
    got = lookup(found.labels, found.table, table)
    values = score(got, lookup(reference, source, table), len(table.structures) + 1, (1.0, 1.0, 1.0), ("dice",))["dice"][1:]
    return {s.name: value for s, value in zip(table.structures, values, strict=True)}


def test_it_finds_the_brain_and_tells_left_from_right(found):
    assert dice(found, "brain", "mni_sym09c_brainmask.nii.gz", "brain")["Brain"] > 0.9
    values = dice(found, "seg33", "mni_sym09c_aseg.nii.gz", "freesurfer")
    sides = [name for name in values if name.startswith(("Left", "Right")) and not np.isnan(values[name])]
    assert np.mean([values[name] for name in sides]) > 0.6
    for name in ("hippocampus", "caudate", "putamen", "thalamus"):
        assert min(values[f"Left {name}"], values[f"Right {name}"]) > 0.6


def test_how_a_scan_is_stored_changes_nothing(by, head, found):
    stored = reorient(Scan(head.voxels, head.affine), "PIL")
    again = brainseg_jax.predict(stored, by)
    back = reorient(Scan(again.labels, again.affine), "RAS")
    np.testing.assert_array_equal(back.voxels, reorient(Scan(found.labels, found.affine), "RAS").voxels)


def test_its_card_knows_what_is_usual(by):
    assert all(file.stat().st_size < 10e6 for file in NETWORKS.values())
    for task in ("", "skull", "four", "thirtythree"):
        asked = by.asked(task, tta=False, keep_small_components=False)
        cohort = asked.cohort()
        assert {s.name for s in asked.table.structures} <= cohort.keys()
        assert len(voxel_ids(asked.table)) == len(asked.table.structures) + 1
