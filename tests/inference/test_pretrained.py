"""The networks that come with the package, on a head that comes with it and was not trained on: the MNI template, with its aseg."""

import runpy
from pathlib import Path

import numpy as np
import pytest

import brainseg_jax
from brainseg_jax.data.labels import voxel_ids
from brainseg_jax.data.nifti import Scan, read, reorient
from brainseg_jax.inference.predictor import predictor
from brainseg_jax.pretrained import NETWORKS

GOLDEN = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "pretrained.py"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=NETWORKS)
def by(request):
    return predictor([request.param])


@pytest.fixture(scope="module")
def head():
    return read(GOLDEN["HEAD"])


@pytest.fixture(scope="module")
def found(by, head):
    return brainseg_jax.predict(head, by)


def test_it_segments_the_template_as_well_as_it_did(by, found, request):
    """Each structure by itself: a mean would hide one that is lost, or left and right exchanged."""
    network = request.node.callspec.params["by"]
    now, then = GOLDEN["dice_of"](found), GOLDEN["recorded"](network)
    assert now.keys() == then.keys()
    assert {name: (round(now[name], 3), then[name]) for name in then if now[name] < then[name] - 0.02} == {}
    # And what was written down is good enough to ship.
    assert then["Brain"] > 0.95 and np.mean(list(then.values())) > 0.7


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
