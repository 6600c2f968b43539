"""The sample cohort: plausible, reproducible, resumable. Most tests make subjects on coarse voxels to stay quick."""

import hashlib
import inspect
import json

import numpy as np
import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data import sample
from brainseg_jax.data.manifest import read_manifest
from brainseg_jax.data.nifti import orientation, read, read_labels, reorient


@pytest.fixture
def quick(monkeypatch):
    """Subjects on voxels four times as wide; in this process only, so without workers."""
    full = sample._subject
    monkeypatch.setattr(sample, "_subject", lambda seed, i: full(seed, i, coarser=4.0))


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_template():
    head, labels, mask = sample.template()
    assert head.voxels.shape == labels.voxels.shape == mask.voxels.shape == (193, 229, 193)
    assert orientation(head.affine) == "RAS" and abs(np.linalg.det(head.affine)) == pytest.approx(1)
    assert set(np.unique(mask.voxels)) == {0, 1} and mask.voxels.sum() == pytest.approx(1_887_000, rel=1e-3)
    assert len(np.unique(labels.voxels)) == 34 and head.voxels[labels.voxels == 2].mean() > head.voxels[labels.voxels == 3].mean()


def test_notice_is_loud_and_credits():
    assert "ONE anatomy" in sample.NOTICE and "NO EVIDENCE" in sample.NOTICE and "McGill" in sample.NOTICE


def test_a_subject_depends_on_seed_and_number_only(quick):
    image, labels = sample._subject(3, 1)
    sample._subject(3, 0)
    again, labels_again = sample._subject(3, 1)
    np.testing.assert_array_equal(image.voxels, again.voxels)
    np.testing.assert_array_equal(labels.voxels, labels_again.voxels)
    other = sample._subject(4, 1)[0]
    assert other.voxels.shape != image.voxels.shape or (other.voxels != image.voxels).any()


def test_subjects_are_heads_with_their_labels_on_them(quick):
    """Template ids only; brains of a brain's size; white matter brighter than grey, grey than ventricles; every subject another."""
    known = set(np.unique(sample.template()[1].voxels))
    volumes, kinds = [], set()
    for i in range(6):
        image, labels = sample._subject(0, i)
        assert image.voxels.shape == labels.voxels.shape and image.voxels.dtype == labels.voxels.dtype == np.uint8
        np.testing.assert_array_equal(image.affine, labels.affine)
        assert set(np.unique(labels.voxels)) <= known
        ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        assert 1200 < (labels.voxels > 0).sum() * ml < 2050  # 1900 ml / 1.06³, and ±8 % in every direction
        means = [image.voxels[np.isin(labels.voxels, ids)].mean() for ids in ((4, 43), (3, 42), (2, 41))]
        assert means[0] + 15 < means[1] < means[2] - 10
        assert (image.voxels == 255).mean() < 0.01
        right, left = (np.argwhere(np.isin(labels.voxels, ids)).mean(0) @ image.affine[0, :3] for ids in ((41, 42), (2, 3)))
        assert right > left + 40  # in the world, whatever the order of axes on disk
        volumes.append(round((labels.voxels > 0).sum() * ml))
        kinds.add((orientation(image.affine), *np.linalg.norm(image.affine[:3, :3], axis=0).round(1)))
    assert len(set(volumes)) == 6 and len(kinds) >= 3


def test_nothing_folds():
    """The map's Jacobian keeps its sign and stays well away from 0 for many seeds."""
    for i in range(12):
        rng = np.random.default_rng([7, i])
        grid, _ = sample._grid(rng, 4.0)
        jacobian = sample._jacobian(sample._coordinates(rng, grid, (40, 48, 40)))
        assert jacobian.min() > 0.1 * np.median(jacobian) > 0


def test_a_fold_is_undone(monkeypatch):
    """Of a warp far too strong, less is taken."""
    smooth = sample._smooth
    monkeypatch.setattr(sample, "_smooth", lambda rng, shape, sigma: 8 * smooth(rng, shape, sigma))
    rng = np.random.default_rng(0)
    grid, _ = sample._grid(rng, 4.0)
    assert sample._jacobian(sample._coordinates(rng, grid, (40, 48, 40))).min() > 0


def test_contrast_rises():
    for i in range(20):
        curve = sample._contrast(np.random.default_rng(i))
        assert curve[0] == 0 and (np.diff(curve) >= 0).all() and curve[int(sample.WHITE)] == pytest.approx(1, abs=0.02)


def test_fields_are_interpolated_to_their_corners():
    field = np.arange(3.0)[None, :, None, None] * np.ones((1, 3, 2, 2))
    out = sample._upsample(field, (5, 4, 3))
    np.testing.assert_allclose(out[0, :, 0, 0], [0, 0.5, 1, 1.5, 2])
    ramp = np.arange(2.0)[None, None, None, :] * np.ones((1, 2, 2, 2))
    np.testing.assert_allclose(sample._upsample(ramp, (2, 2, 5), 0.5)[0, 0, 0], [0.125, 0.375, 0.625, 0.875, 1])


def test_cohort(quick, tmp_path):
    seen = []
    manifest = sample.make_cohort(tmp_path / "a", subjects=4, seed=5, workers=1, progress=lambda *step: seen.append(step))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    rows = read_manifest(manifest)
    assert [row.subject for row in rows] == ["sub-01", "sub-02", "sub-03", "sub-04"]
    assert [row.split for row in rows] == ["train", "train", "val", "val"]
    assert {row.dataset for row in rows} == {"sample"} and {row.scheme for row in rows} == {("freesurfer",)}
    for row in rows:
        image, labels = read(row.image), read_labels(row.labels[0])
        assert image.voxels.shape == labels.voxels.shape and labels.voxels.any()
    assert "/" not in manifest.read_text()  # relative paths: the folder can move
    assert (tmp_path / "a" / "NOTICE.txt").read_text().strip() == sample.NOTICE and (tmp_path / "a" / "COPYING_MNI").exists()

    # Equal bytes a second time, and for another number of subjects.
    sample.make_cohort(tmp_path / "b", subjects=2, seed=5, workers=1)
    first, fewer = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert all(first[name] == fewer[name] for name in fewer if name.startswith("sub-")) and len(fewer) < len(first)
    sample.make_cohort(tmp_path / "b", subjects=4, seed=5, workers=1)
    assert contents(tmp_path / "b") == first

    # Finished: nothing is made. A file lost: only that subject is.
    seen.clear()
    sample.make_cohort(tmp_path / "a", subjects=4, seed=5, workers=1, progress=lambda *step: seen.append(step))
    assert seen == []
    (tmp_path / "a" / "sub-02_aseg.nii.gz").unlink()
    sample.make_cohort(tmp_path / "a", subjects=4, seed=5, workers=1, progress=lambda *step: seen.append(step))
    assert seen == [(4, 4)] and contents(tmp_path / "a") == first

    # Another seed: nothing old is left among the new.
    sample.make_cohort(tmp_path / "a", subjects=2, seed=6, workers=1)
    assert sorted(contents(tmp_path / "a")) == sorted(fewer) and contents(tmp_path / "a")["sub-01_T1w.nii.gz"] != first["sub-01_T1w.nii.gz"]


def test_interrupted_cohort_goes_on(quick, tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample.make_cohort(tmp_path, subjects=3, workers=1, progress=stop)
    assert not (tmp_path / "manifest.tsv").exists() and json.loads((tmp_path / "cohort.json").read_text())["finished"] == 0
    seen = []
    sample.make_cohort(tmp_path, subjects=3, workers=1, progress=lambda *step: seen.append(step))
    assert seen == [(3, 3)] and len(read_manifest(tmp_path / "manifest.tsv")) == 3
    assert not list(tmp_path.glob(".*"))


def test_what_is_refused(tmp_path):
    with pytest.raises(InputError, match="1 or more"):
        sample.make_cohort(tmp_path, subjects=0)
    (tmp_path / "manifest.tsv").write_text("mine\n")
    with pytest.raises(InputError, match=r"manifest\.tsv: was not written by the sample generator"):
        sample.make_cohort(tmp_path)
    assert (tmp_path / "manifest.tsv").read_text() == "mine\n"


def test_the_recipe_knows_its_version(monkeypatch):
    """A changed seed or version is another cohort; a reminder that a change of the recipe needs a new VERSION."""
    before = sample._recipe(0)
    assert before != sample._recipe(1)
    monkeypatch.setattr(sample, "VERSION", sample.VERSION + 1)
    assert before != sample._recipe(0)
    assert list(inspect.signature(sample.make_cohort).parameters) == ["folder", "subjects", "seed", "workers", "progress"]


@pytest.mark.slow
def test_workers_make_the_same(tmp_path):
    """Two processes, full size: the bytes of one process; and the geometry survives the file."""
    sample.make_cohort(tmp_path / "two", subjects=2, seed=1, workers=2)
    image, labels = sample._subject(1, 0)
    back = read(tmp_path / "two" / "sub-01_T1w.nii.gz")
    np.testing.assert_array_equal(back.voxels, image.voxels)
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-4)
    np.testing.assert_array_equal(read_labels(tmp_path / "two" / "sub-01_aseg.nii.gz").voxels, labels.voxels)
    assert orientation(reorient(back, "RAS").affine) == "RAS"
