"""From a scan to labels on its own grid: the way back against SciPy, every orientation by property, and what is refused."""

import re
import subprocess
import sys
from dataclasses import replace
from itertools import permutations, product
from types import SimpleNamespace

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from native import restore
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.stats import entropy

from brainseg_jax.core.errors import InputError
from brainseg_jax.data.labels import parse_table, read_table, table_text
from brainseg_jax.data.nifti import Scan
from brainseg_jax.data.nifti_write import write
from brainseg_jax.data.preprocess import Standardized, spec, standardize
from brainseg_jax.inference import network, prediction, segmentation, sliding_window
from brainseg_jax.inference.input_checks import check_head_scan, check_not_empty
from brainseg_jax.inference.prediction import predict
from brainseg_jax.inference.predictor import Predictor, predictor
from brainseg_jax.inference.segmentation import SoftSegmentation, on_scan, soft_maps
from brainseg_jax.training.run_records import as_json

SPEC = spec("default", 3.0, (48, 48, 48))
TABLE = parse_table("id\tname\tpartner\tfreesurfer\n7\tBlob\t7\t1035\n", "blobs")
BY = Predictor((), SPEC, TABLE, TABLE, 0.5, "gaussian", ())

SHEAR = np.array([[1, 0, 0], [0, 1, 0.15], [0, 0, 1.0]])
TURN = Rotation.from_euler("xyz", (14, -9, 20), degrees=True).as_matrix()


def placed(codes="RAS", lines=None, spacing=(4.0, 4.0, 4.0), shape=(24, 24, 24), middle=(3.0, -8.0, 11.0)):
    """An affine whose axes point to `codes`, turned by `lines`; the middle of the scan lies at `middle`."""
    axes, affine = np.zeros((3, 3)), np.eye(4)
    for k, letter in enumerate(codes):
        axes["LRPAIS".index(letter) // 2, k] = 1 if letter in "RAS" else -1
    affine[:3, :3] = (np.eye(3) if lines is None else lines) @ axes * spacing
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def world(affine, shape):
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def ball(at, centre, radius):
    return np.sum((at - centre) ** 2 / np.square(radius), axis=-1) < 1


def head(affine, shape=(24, 24, 24)):
    """A dark ellipsoid with a bright ball in it, to the right, in front and high up; and where the ball is."""
    at = world(affine, shape)
    blob = ball(at, (17, 4, 23), 17)
    return np.where(blob, 300, 100 * ball(at, (3, -8, 11), (42, 46, 40))).astype(np.float32), blob


@pytest.fixture
def threshold(monkeypatch):
    """In place of networks: what is bright is class 1. What it was asked is kept in `calls`."""
    calls = []

    def segment(models, volume, *, overlap, blend, flip, each):
        calls.append((overlap, blend, flip))
        volume = np.asarray(volume)
        bright = np.clip(4 * volume - 2.167, 0, 1)  # 0.5 halfway between ellipsoid and ball
        probabilities = np.concatenate([1 - bright, bright], axis=-1)
        for first in range(0, len(volume), 8):
            rows = slice(first, first + 8)
            each(rows, jnp.asarray(probabilities[rows]))
        return sliding_window.Segmentation(probabilities.argmax(-1).astype(np.uint8), probabilities.sum((0, 1, 2), dtype=np.float64))

    monkeypatch.setattr(sliding_window, "segment", segment)
    return calls


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# ---- geometry


@pytest.mark.parametrize("codes", ["".join(letters) for axes in permutations(("LR", "PA", "IS")) for letters in product(*axes)])
def test_labels_lie_on_the_object_whatever_the_grid(threshold, codes):
    """48 orientations, straight, oblique and sheared, isotropic and not; the array's order and place are the scan's to the bit."""
    for lines, spacing in product((None, TURN, TURN @ SHEAR), ((4.0, 4.0, 4.0), (4.5, 2.7, 3.9))):
        shape = tuple(int(n) for n in np.ceil(100 / np.array(spacing)))
        affine = placed(codes, lines, spacing, shape)
        voxels, blob = head(affine, shape)
        found = predict((voxels, affine), BY)
        assert found.labels.shape == shape and found.affine.tobytes() == affine.tobytes()
        assert found.labels.dtype == np.int16 and set(np.unique(found.labels)) == {0, 1035}
        assert dice(found.labels > 0, blob) > 0.93, (lines, spacing)
        assert found.volumes["Blob"] == pytest.approx(4 / 3 * np.pi * 1.7**3, rel=0.35)


def maps(rng, shape, k, sharp=6):
    """Smooth random probabilities in bytes, the winner one above, as `find` leaves them."""
    logits = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 2) for _ in range(k)]) * 10 * sharp
    p = np.exp(logits - logits.max(0))
    p /= p.sum(0)
    return np.asarray(segmentation._in_bytes(jnp.asarray(np.moveaxis(p, 0, -1)))).transpose(3, 0, 1, 2).copy()


@pytest.mark.parametrize(
    ("codes", "lines", "spacing"),
    [("RAS", None, (1.0, 1.1, 1.3)), ("PIL", None, (0.8, 0.8, 1.5)), ("LSA", TURN, (1.7, 0.9, 1.2)), ("ARS", SHEAR, (1.1, 0.9, 1.4))],
)
def test_the_likeliest_class_between_voxels_is_scipys(rng, codes, lines, spacing):
    """All classes taken to the scan's grid whole, by the general transform; ours looks at boxes, and along axes where it can."""
    shape = (60, 56, 52)
    affine = placed(codes, lines, spacing, shape)
    ready = standardize(Scan(rng.random(shape, np.float32), affine), spec("default", 1.2, (40, 36, 32)))
    soft = maps(rng, (40, 36, 32), 6)
    soft[5] = 0  # a class that is nowhere
    whole = np.stack([restore(s.astype(np.float32), ready.record, order=1) for s in soft])
    at = world(np.linalg.solve(ready.affine, affine), shape)
    within = np.all((at >= 0) & (at <= np.array(soft.shape[1:]) - 1), axis=-1)
    best = np.sort(whole, axis=0)
    clear = within & (best[-1] - best[-2] > 0.01)
    labels = on_scan(SoftSegmentation(soft, np.zeros(6), 0.0), ready)
    assert labels.dtype == np.uint8 and clear.mean() > 0.1
    np.testing.assert_array_equal(labels[clear], whole.argmax(0)[clear])
    outside = np.any((at < -0.5 - 1e-6) | (at > np.array(soft.shape[1:]) - 0.5 + 1e-6), axis=-1)
    assert outside.any() and (lines is SHEAR or not labels[outside].any())
    for number, (ours, theirs) in enumerate(zip(soft_maps(SoftSegmentation(soft, np.zeros(6), 0.0), ready), whole, strict=True)):
        assert ours.dtype == np.uint8
        assert np.abs(ours[within] - theirs[within]).max() <= 0.5 + 1e-3
        assert lines is SHEAR or (ours[outside] == (0 if number else 255)).all()


def test_on_the_networks_own_grid_labels_are_theirs(rng):
    """To the voxel, also where probabilities round to the same byte."""
    affine = placed("RAS", None, (1.0, 1.0, 1.0), (40, 36, 32))
    ready = standardize(Scan(rng.random((40, 36, 32), np.float32), affine), spec("default", 1.0, (40, 36, 32)))
    assert np.array_equal(ready.affine, affine)
    p = rng.dirichlet(np.full(9, 300.0), size=(40, 36, 32)).astype(np.float32)  # all about 1/9
    soft = np.asarray(segmentation._in_bytes(jnp.asarray(p))).transpose(3, 0, 1, 2).copy()
    assert (np.sort(soft, axis=0)[-1] > np.sort(soft, axis=0)[-2]).all()
    np.testing.assert_array_equal(on_scan(SoftSegmentation(soft, np.zeros(9), 0.0), ready), p.argmax(-1))
    np.testing.assert_array_equal(np.stack(list(soft_maps(SoftSegmentation(soft, np.zeros(9), 0.0), ready))), soft)
    assert np.abs(soft / 255 - p.transpose(3, 0, 1, 2)).max() < 1.5 / 255


def test_a_finer_grid_has_no_steps_of_the_coarser_one(threshold):
    """Labels at 1 mm of a network at 3 mm: their volume is the ball's, and their surface is no staircase of 3 mm."""
    shape = (100, 96, 90)
    affine = placed("LIA", None, (1.0, 1.0, 1.0), shape)
    voxels, blob = head(affine, shape)
    labels = predict((voxels, affine), BY).labels > 0
    assert dice(labels, blob) > 0.96
    assert labels.sum() == pytest.approx(blob.sum(), rel=0.05)
    ready = standardize(Scan(voxels, affine), SPEC)
    nearest = restore((ready.image > 0.667 * 255).astype(np.uint8), ready.record) > 0
    assert dice(labels, blob) > dice(nearest, blob) + 0.01


# ---- the function


def test_from_a_file_and_from_an_array_it_is_the_same(threshold, tmp_path):
    affine = placed("PIL").astype(np.float32).astype(np.float64)
    voxels, _ = head(affine)
    write(tmp_path / "a.nii.gz", voxels, affine)
    one, other = predict(tmp_path / "a.nii.gz", BY), predict((voxels, affine.tolist()), BY, tta=True)
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.labels, predict(nib.load(tmp_path / "a.nii.gz"), BY).labels)
    assert one.volumes == {"Blob": np.count_nonzero(one.labels) * abs(np.linalg.det(affine[:3, :3])) / 1000}
    assert one.soft_volumes == other.soft_volumes and one.affine.tobytes() == other.affine.tobytes() == affine.tobytes()
    (_, _, none), (_, _, flip), _ = threshold
    assert none is None and flip.axis == 0 and flip.partners.tolist() == [0, 1]


def test_an_image_in_memory_is_taken_as_its_file_would_be(threshold, tmp_path):
    """In its unit, by the scanner's form, and with a word on it."""
    affine = placed()
    voxels, _ = head(affine)
    image = nib.Nifti1Image(voxels[None], np.diag([1120, 1160, 1200, 1]) @ affine)
    image.set_qform(np.diag([1000, 1000, 1000, 1]) @ affine, 1)
    image.set_sform(image.affine, 4)
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii.gz")
    one, other = predict(tmp_path / "a.nii.gz", BY), predict(image, BY)
    np.testing.assert_allclose(other.affine, affine, atol=1e-3)
    assert other.affine.tobytes() == one.affine.tobytes() and other.volumes == one.volumes
    assert [text.removeprefix("scan: ") for text in other.remarks] == [text.removeprefix(f"{tmp_path}/a.nii.gz: ") for text in one.remarks]
    assert "the scanner's was used" in one.remarks[0]
    with pytest.raises(InputError, match=r"^scan: shape \(2, .* is a series"):
        predict(nib.Nifti1Image(np.stack([voxels, voxels]), affine), BY)


def test_it_says_what_to_look_at(threshold):
    """Against a cohort, where the checkpoint's card has one."""
    affine = placed()
    voxels, _ = head(affine)
    assert predict((voxels, affine), BY).flags == []
    cut = predict((voxels[:, :, :18], affine), BY)  # the ball's middle is plane 14.5
    (flag,) = cut.flags
    assert (flag.structure, flag.kind) == ("Blob", "edge") and "(top)" in flag.words
    known = BY._replace(cards=({}, {"cohort": {"others": {}}}, {"cohort": {"blobs": {"Blob": [50.0, 5.0, 30]}}}))
    (flag,) = predict((voxels, affine), known).flags
    assert (flag.structure, flag.kind) == ("All structures", "volume") and "small" in flag.words


def test_entropy_is_the_mean_of_what_is_inside(threshold):
    affine = placed()
    ready = standardize(Scan(head(affine)[0], affine), SPEC)
    bright = np.clip(4 * (ready.image / 255) - 2.167, 0, 1)
    expected = np.mean([entropy([p, 1 - p]) for p in bright[bright > 0.5]])
    assert segmentation.segment_grid(BY, ready).entropy == pytest.approx(expected, rel=1e-4) and expected > 0.01
    p = np.array([[0.1, 0.8, 0.1], [0.9, 0.05, 0.05], [0.2, 0.2, 0.6], [0, 0, 1.0]], np.float32).reshape(2, 2, 1, 3)
    inside = [entropy([0.1, 0.8, 0.1]), entropy([0.2, 0.2, 0.6]), 0]
    np.testing.assert_allclose(segmentation._entropy(jnp.asarray(p)), [sum(inside), 3], rtol=1e-6)
    assert np.isnan(segmentation.segment_grid(BY, ready._replace(image=np.zeros(SPEC.size, np.uint8))).entropy)


SIX = "id\tname\tpartner\tfreesurfer\n" + "".join(
    f"{n}\t{name}\t{partner}\t{id}\n"
    for n, (name, partner, id) in enumerate(
        [("Left cortex", 2, 3), ("Right cortex", 1, 42), ("Stem", 3, 16), ("CSF", 4, 24), ("Nerve", 5, 85), ("Bone", 6, 165)], 1
    )
)


def test_classes_are_grouped_into_a_task(monkeypatch):
    """Probabilities add up, what belongs to no structure of the task is background, and what the networks never see is left out."""
    own = parse_table(SIX, "six")
    by = BY._replace(table=own, own=own)
    four = by.grouped("four")
    assert four.table.name == "four" and [s.name for s in four.table.structures] == ["Cortex", "White matter", "CSF"]
    rows = np.eye(4)[[0, 1, 1, 2, 3, 2, 0]]
    np.testing.assert_array_equal(four.groups, rows)
    skull = by.grouped("skull")
    assert [s.name for s in skull.table.structures] == ["Brain"]
    np.testing.assert_array_equal(skull.groups[:, 1], [0, 1, 1, 1, 1, 1, 0])
    assert four.with_flip().flip.partners.tolist() == [0, 2, 1, 3, 4, 5, 6]  # of the networks' classes

    p = np.random.default_rng(0).dirichlet(np.ones(7), (48, 48, 48)).astype(np.float32)

    def segment(models, volume, *, overlap, blend, flip, each):
        each(slice(0, 20), jnp.asarray(p[:20]))
        each(slice(20, 48), jnp.asarray(p[20:]))
        return sliding_window.Segmentation(p.argmax(-1).astype(np.uint8), p.sum((0, 1, 2), np.float64))

    monkeypatch.setattr(sliding_window, "segment", segment)
    ready = Standardized(np.zeros((48, 48, 48), np.uint8), placed(), {})
    found = segmentation.segment_grid(four, ready)
    expected = p @ rows
    assert (np.moveaxis(found.soft, 0, -1).argmax(-1) == expected.argmax(-1)).all()
    np.testing.assert_allclose(found.volumes, expected.sum((0, 1, 2)) * 0.064, rtol=1e-6)
    for one, together in zip((by, four, skull), segmentation.segment_grid_each([by, four, skull], ready), strict=True):
        alone = segmentation.segment_grid(one, ready)
        np.testing.assert_array_equal(together.soft, alone.soft)
        np.testing.assert_array_equal(together.volumes, alone.volumes)
        assert together.entropy == alone.entropy


def test_a_task_that_the_networks_cannot_give_is_refused():
    own = parse_table(SIX, "six")
    by = BY._replace(table=own, own=own)
    with pytest.raises(InputError, match="did you mean 'four'"):
        by.grouped("fuor")
    whole = parse_table("id\tname\tpartner\tfreesurfer\tpart_of\n1\tCortex\t1\t3/42\t\n", "whole")
    with pytest.raises(InputError, match="does not tell"):
        BY._replace(table=whole, own=whole).grouped("thirtythree")
    arch = SIX.replace("partner\tfreesurfer\n", "partner\tfreesurfer\tpart_of\n").replace("\t165\n", "\t\t3/42\n")
    arch = parse_table(arch, "arch")
    with pytest.raises(InputError, match="do not tell the sides of Bone apart"):
        BY._replace(table=arch, own=arch).grouped("thirtythree")


def test_ids_are_freesurfers_where_there_are_any(threshold):
    scan = head(placed())[0], placed()
    for ids, value in (("auto", 1035), ("freesurfer", 1035), ("table", 7)):
        found = predict(scan, BY, ids=ids)
        assert set(np.unique(found.labels)) == {0, value} and [s.id for s in found.table.structures] == [value]
    bare = BY._replace(table=parse_table("id\tname\tpartner\n300\tBlob\t300\n", "bare"))
    assert set(np.unique(predict(scan, bare).labels)) == {0, 300}
    with pytest.raises(InputError, match="no FreeSurfer ids, not one; write the table's own ids"):
        predict(scan, bare, ids="freesurfer")
    twice = BY._replace(table=parse_table("id\tname\tpartner\tfreesurfer\n1\ta\t2\t17\n2\tb\t1\t17\n", "twice"))
    assert [s.id for s in prediction.output_table(twice.table, "auto").structures] == [1, 2]
    with pytest.raises(InputError, match="two structures with one FreeSurfer id"):
        prediction.output_table(twice.table, "freesurfer")


def test_partners_are_renamed_with_the_ids():
    table = prediction.output_table(read_table("seg33"), "auto")
    by_name = {s.name: s for s in table.structures}
    assert (by_name["Left hippocampus"].id, by_name["Left hippocampus"].partner) == (17, 53)
    assert by_name["Right hippocampus"].partner == 17
    assert [s.id for s in prediction.output_table(read_table("seg4"), "auto").structures] == [1, 2, 3, 4]


@pytest.mark.parametrize(("largest", "dtype"), [(255, np.uint8), (256, np.int16), (32767, np.int16), (32768, np.int32)])
def test_ids_take_the_smallest_type(largest, dtype):
    table = parse_table(f"id\tname\tpartner\n1\ta\t1\n{largest}\tb\t{largest}\n", "t")
    found = prediction.as_ids(np.array([0, 1, 2], np.uint8).reshape(3, 1, 1), table)
    assert found.dtype == dtype and found.ravel().tolist() == [0, 1, largest]


@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 0), ("RSP", 0), ("PSL", 2), ("ALS", 1)])
def test_the_flip_stands_between_left_and_right(orientation, axis):
    by = BY._replace(spec=replace(SPEC, orientation=orientation), own=read_table("seg33")).with_flip()
    assert by.flip.axis == axis
    assert by.flip.partners[[0, 1, 19]].tolist() == [0, 19, 1]  # white matter, left and right


def test_it_is_a_function_however_it_is_imported():
    """The command's module has the same name: both can be called, in whatever order they come, and importing either loads no JAX."""
    code = """
import sys, types, brainseg_jax
sys.modules["brainseg_jax.inference.prediction"] = types.SimpleNamespace(predict=lambda *args, **options: (args, options))
def works(predict):
    assert predict("scan", "checkpoint", tta=True) == (("scan", "checkpoint"), {"tta": True})
works(brainseg_jax.predict)
from brainseg_jax import predict
works(predict)
import brainseg_jax.predict
works(brainseg_jax.predict)
from brainseg_jax import predict
works(predict)
import brainseg_jax.predict as module
works(module)
assert "jax" not in sys.modules and "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# ---- what is refused


REFUSED = {
    "few slices": (np.ones((24, 24, 15), np.float32), (4.0, 4.0, 9.0), "24 × 24 × 15 voxels of 4 × 4 × 9 mm show too little of a head"),
    "a slab": (np.ones((60, 60, 29), np.float32), (2.0, 2.0, 2.0), "60 × 60 × 29 voxels of 2 × 2 × 2 mm show too little"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_too_small(name):
    voxels, spacing, reason = REFUSED[name]
    with pytest.raises(InputError, match=rf"x\.nii: {reason}.*at least 16 voxels and 60 mm on every axis"):
        check_head_scan(Scan(voxels, placed(spacing=spacing)), "x.nii")


def test_hounsfield_units():
    affine = placed()
    voxels = head(affine)[0]
    ct = np.where(voxels > 0, voxels - 60, -1000).astype(np.float32)
    with pytest.raises(InputError, match=r"x\.nii: looks like CT, \d+% of its voxels are air of about -1000 Hounsfield"):
        check_head_scan(Scan(ct, affine), "x.nii")
    ct[ct < -500] = -2000  # padding, as of scanners with a round field of view; the air in it is still there
    ct[:, :, :6] = -1024
    with pytest.raises(InputError, match="looks like CT"):
        check_head_scan(Scan(ct, affine), "x.nii")
    voxels[voxels == 0] = np.random.default_rng(0).normal(0, 12, (voxels == 0).sum())  # an MRI that was interpolated has some below 0
    voxels[0, 0, :3] = -1000
    check_head_scan(Scan(voxels, affine), "x.nii")


@pytest.mark.parametrize("kind", ["rician", "uniform", "integers"])
def test_noise(rng, kind):
    shape = (40, 40, 40)
    draw = {
        "rician": lambda: np.linalg.norm(rng.normal(size=(2, *shape)), axis=0),
        "uniform": lambda: rng.random(shape),
        "integers": lambda: rng.integers(0, 3, shape),
    }[kind]
    with pytest.raises(InputError, match=r"x\.nii: is noise without a head"):
        check_head_scan(Scan(draw().astype(np.float32), placed()), "x.nii")


def test_a_noisy_head_is_a_head(rng):
    affine = placed()
    voxels = head(affine)[0]
    check_head_scan(
        Scan(np.hypot(voxels + rng.normal(0, 40, voxels.shape), rng.normal(0, 40, voxels.shape)).astype(np.float32), affine), "x.nii"
    )


def test_where_no_brain_is_found_nothing_is_given(threshold):
    affine = placed()
    voxels, _ = head(affine)
    brain = BY._replace(table=read_table("brain"))
    with pytest.raises(InputError, match=r"scan: no brain was found in it, \d+ ml of labels; check that it shows a head"):
        predict((voxels, affine), brain)  # the ball has 21 ml
    assert predict((voxels, affine), BY).labels.any()  # a part of the brain may have as little
    empty = Standardized(np.zeros(SPEC.size, np.uint8), np.eye(4), {"source_shape": [4, 5, 6], "source_affine": np.eye(4).tolist()})
    soft = np.zeros((2, *SPEC.size), np.uint8)
    soft[0] = 255
    assert not on_scan(SoftSegmentation(soft, np.zeros(2), 0.0), empty).any()
    with pytest.raises(InputError, match="no brain was found in it, 0 ml"):
        check_not_empty(TABLE, np.array([5.0, 0.0]), "x")


def test_no_checkpoint():
    with pytest.raises(InputError, match="no checkpoint; give one"):
        predict("scan.nii.gz", [])


@pytest.mark.parametrize(
    ("voxels", "affine", "reason"),
    [
        (np.ones((20, 20, 20, 2)), np.eye(4), r"shape \(20, 20, 20, 2\); give one grey value per voxel"),
        (np.ones((20, 20, 20), complex), np.eye(4), "an array of complex128"),
        (np.ones((20, 20, 20)), np.eye(3), r"affine has shape \(3, 3\); give the 4 × 4 matrix"),
        (np.ones((20, 20, 20)), np.diag([1, 1, 0, 1]), "affine is singular"),
        (np.ones((20, 20, 20)), np.diag([1, np.nan, 1, 1]), "affine is not finite"),
        (np.ones((20, 20, 20)), np.diag([1e3, 1e3, 1e3, 1]), "voxels of 1000 × 1000 × 1000 mm are outside"),
        (np.ones((20, 20, 20)), np.diag([4, 4, 4, 1]), "the image is empty"),
        (np.where(np.arange(8000).reshape(20, 20, 20) < 7900, np.nan, 1.0), np.diag([4, 4, 4, 1]), "most voxels are NaN"),
    ],
)
def test_arrays_that_are_no_scan(voxels, affine, reason):
    with pytest.raises(InputError, match=f"^scan: .*({reason})"):
        predict((voxels, affine), BY)


@pytest.mark.parametrize("given", [np.ones((20, 20, 20)), None, (np.ones((20, 20, 20)),), 3])
def test_what_is_neither_a_file_nor_an_image_is_refused(given):
    with pytest.raises(InputError, match=r"^scan: is \w+; give a file, an image of nibabel's, or \(voxels, affine\)$"):
        predict(given, BY)


def test_what_was_read_here_is_a_scan_too(threshold):
    voxels, affine = head(placed())[0], placed()
    assert np.array_equal(predict(Scan(voxels, affine), BY).labels, predict((voxels, affine), BY).labels)


def test_ids_are_one_of_three():
    with pytest.raises(InputError, match="ids='dlmuse' is unknown; use one of freesurfer, table, auto"):
        predict("scan.nii.gz", BY, ids="dlmuse")


def test_what_is_not_finite_in_an_array_is_air(threshold):
    affine = placed()
    voxels, blob = head(affine)
    voxels[0, 0, :3] = np.nan, np.inf, -np.inf
    assert dice(predict((voxels.astype(np.float64), affine), BY).labels > 0, blob) > 0.9


CARD = {"labels": table_text(TABLE), "spec": as_json(SPEC)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": 7}, "its card cannot be used"),
        ({"labels": "id\tname\n"}, "its label table: "),
        (
            {"labels": table_text(read_table("seg4"))},
            "its label table has 4 structures for 1 classes; use a checkpoint",
        ),
        ({"spec": {"spacing": 2}}, "its card cannot be used"),
        ({"spec": None}, "its card cannot be used"),
        ({"cohort": {"blobs": {"Blob": "many"}}}, "cohort has other than means, deviations and counts); copy or download it again"),
        ({"cohort": []}, "its card cannot be used"),
        ({"subjects": [None]}, "subjects are no texts"),
        ({}, ""),
    ],
)
def test_a_card_that_says_nothing_useful_is_one_line(small, monkeypatch, change, reason):
    config = small(objective="segmentation", classes=2)
    loaded = SimpleNamespace(card=CARD | change, config=config, model=lambda: sliding_window.Model(None, {}, (16, 16, 16)))
    monkeypatch.setattr(network, "load", lambda folder: loaded)
    if reason:
        with pytest.raises(InputError, match=f"^net: .*{re.escape(reason)}") as refusal:
            predictor(["net"])
        assert "\n" not in str(refusal.value)
    else:
        assert predictor(["net"]).table.structures == TABLE.structures
