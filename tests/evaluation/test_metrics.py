"""Scores by hand (boxes moved by known distances), against MONAI and a distance transform, and what an absent structure counts."""

import numpy as np
import pytest
from peers import peer
from scipy import ndimage

from brainseg_jax.evaluation.metrics import (
    METRICS,
    assd,
    confusion,
    definitions,
    dice,
    hd95,
    nsd,
    score,
    surface,
    surface_distances,
    volumes,
)

torch = peer("torch")
DiceMetric = peer("monai.metrics:DiceMetric")
HausdorffDistanceMetric = peer("monai.metrics:HausdorffDistanceMetric")
SurfaceDiceMetric = peer("monai.metrics:SurfaceDiceMetric")
SurfaceDistanceMetric = peer("monai.metrics:SurfaceDistanceMetric")

SPACING = (1.0, 0.8, 2.5)


def box(shape, start, size, label=1):
    """A class map with one box of `label`."""
    labels = np.zeros(shape, np.int32)
    labels[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = label
    return labels


def of(scores, label=1):
    return {name: values[label] for name, values in scores.items()}


def blobs(rng, shape, k, noise=0.5):
    """A class map of touching, smooth structures, some at the image's edge, and a disturbed copy."""
    fields = ndimage.gaussian_filter(rng.normal(size=(k, *shape)), (0, 2, 2, 2))
    other = fields + noise * ndimage.gaussian_filter(rng.normal(size=fields.shape), (0, 2, 2, 2))
    return fields.argmax(axis=0).astype(np.uint8), other.argmax(axis=0).astype(np.uint8)


# ---- by hand


def test_a_box_moved_by_a_voxel():
    """4 × 4 × 4 voxels of 1 × 1 × 2.5 mm moved along the last axis: 48 of 64 are shared, and all but the 2 × 2 × 2 within are surface.

    The plane of 16 that the other lacks is 2.5 mm from it, and the 2 × 2 voxels that lie within the other are 1 mm from its side.
    """
    pair = box((8, 8, 8), (2, 2, 2), (4, 4, 4)), box((8, 8, 8), (2, 2, 3), (4, 4, 4))
    scores = of(score(*pair, 2, (1.0, 1.0, 2.5)))
    assert scores == pytest.approx(
        {"pred_ml": 0.16, "ref_ml": 0.16, "dice": 2 * 48 / 128, "hd95": 2.5, "assd": (16 * 2.5 + 4) / 56, "nsd": 40 / 56}
    )
    assert of(score(*pair, 2, (1.0, 1.0, 2.5), ["nsd"], tolerance=2.5))["nsd"] == 1


def test_two_voxels_apart_each_way():
    pair = box((9, 9, 9), (1, 1, 1), (1, 1, 1)), box((9, 9, 9), (4, 5, 3), (1, 1, 1))
    apart = np.sqrt(3**2 + (4 * 0.8) ** 2 + (2 * 2.5) ** 2)
    assert of(score(*pair, 2, SPACING)) == pytest.approx(
        {"pred_ml": 0.002, "ref_ml": 0.002, "dice": 0, "hd95": apart, "assd": apart, "nsd": 0}
    )


def test_hd95_is_the_worse_direction_and_assd_pools_both():
    there, back = np.array([0.0] * 20), np.arange(21.0)
    # The 95th percentile of 0, 1, … 20 is 19; pooled it would be 18.
    assert (hd95(there, back), hd95(back, there)) == (19, 19)
    assert assd(there, back) == pytest.approx(210 / 41)
    assert nsd(there, back, 4.0) == pytest.approx(25 / 41)
    # Between two values it is interpolated: 0.95 of the way.
    assert hd95(np.array([0.0, 1.0]), np.array([0.5])) == pytest.approx(0.95)


def test_a_shift_by_one_voxel_is_within_one_millimetre_whatever_the_header_rounds():
    pair = box((6, 6, 6), (1, 1, 1), (3, 3, 3)), box((6, 6, 6), (2, 1, 1), (3, 3, 3))
    assert of(score(*pair, 2, (1.0000001, 1.0, 1.0)))["nsd"] == 1
    assert of(score(*pair, 2, (1.001, 1.0, 1.0)))["nsd"] < 1


def test_the_surface_has_a_face_to_the_outside():
    mask = np.ones((5, 5, 5), bool)
    mask[2, 2, 2] = False
    expected = np.ones((5, 5, 5), bool)
    expected[1:4, 1:4, 1:4] = False
    for axis in range(3):
        for side in (1, 3):
            expected[tuple(side if i == axis else 2 for i in range(3))] = True
    # The hole's six neighbours, not those at its edges and corners; and the array's edge.
    expected[2, 2, 2] = False
    assert np.array_equal(surface(mask), expected)
    assert not surface(np.zeros((3, 4, 5), bool)).any()
    one = box((4, 4, 4), (3, 0, 2), (1, 1, 1)) == 1
    assert np.array_equal(surface(one), one)


def test_confusion_dice_and_volumes():
    prediction, reference = np.array([0, 1, 1, 2, 2, 2]), np.array([0, 1, 2, 2, 2, 0])
    counts = confusion(prediction.reshape(1, 2, 3), reference.reshape(1, 2, 3), 4)
    assert counts.tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(dice(counts), [2 / 3, 2 / 3, 4 / 6, np.nan])
    np.testing.assert_allclose(volumes(counts, (10.0, 10.0, 10.0)), [[1, 2, 3, 0], [2, 1, 3, 0]])


def test_small_types_do_not_overflow():
    labels = np.full((3, 3, 3), 255, np.uint8)
    assert confusion(labels, labels, 256)[255, 255] == 27


@pytest.mark.parametrize("value", [-1, 3])
def test_what_is_no_class_is_not_counted_as_another(value):
    good, bad = np.zeros((2, 2, 2), np.int32), box((2, 2, 2), (0, 0, 0), (1, 1, 1), value)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="where 0 to 2 are expected"):
            confusion(*pair, 3)


# ---- absent structures


def test_a_structure_on_one_side_only_counts_as_worst():
    shape = (5, 6, 7)
    diagonal = np.sqrt(4**2 + (5 * 0.8) ** 2 + (6 * 2.5) ** 2)
    worst = {"dice": 0, "hd95": diagonal, "assd": diagonal, "nsd": 0}
    there, nothing = box(shape, (1, 1, 1), (3, 3, 3)), np.zeros(shape, np.int32)
    for pair, ml in (((there, nothing), (0.054, 0)), ((nothing, there), (0, 0.054))):
        assert of(score(*pair, 2, SPACING)) == pytest.approx({"pred_ml": ml[0], "ref_ml": ml[1]} | worst)


def test_no_distance_is_longer_than_that_of_an_absent_structure():
    corners = box((5, 6, 7), (0, 0, 0), (1, 1, 1)), box((5, 6, 7), (4, 5, 6), (1, 1, 1))
    missed = of(score(np.zeros((5, 6, 7), np.int32), corners[0], 2, SPACING))
    assert of(score(*corners, 2, SPACING))["hd95"] == pytest.approx(missed["hd95"])


def test_a_structure_on_neither_side_is_not_counted():
    pair = blobs(np.random.default_rng(0), (8, 8, 8), 3)
    scores = score(*pair, 5, SPACING)
    assert all(np.isnan(scores[name][3:]).all() and np.isfinite(scores[name][1:3]).all() for name in METRICS)
    assert (scores["pred_ml"][3:] == 0).all()


def test_the_background_has_dice_and_no_distances():
    pair = box((4, 4, 4), (0, 0, 0), (2, 4, 4)), box((4, 4, 4), (0, 0, 0), (3, 4, 4))
    background = of(score(*pair, 2, SPACING), 0)
    assert background["dice"] == pytest.approx(2 * 16 / (32 + 16))
    assert all(np.isnan(background[name]) for name in ("hd95", "assd", "nsd"))


def test_full_masks():
    full = np.ones((4, 5, 6), np.int32)
    assert of(score(full, full, 2, SPACING)) == pytest.approx({"pred_ml": 0.24, "ref_ml": 0.24, "dice": 1, "hd95": 0, "assd": 0, "nsd": 1})
    assert np.isnan(score(full, full, 2, SPACING)["dice"][0])


# ---- what is asked for


def test_only_what_is_asked_for_is_measured():
    pair = blobs(np.random.default_rng(0), (8, 8, 8), 3)
    every = score(*pair, 3, SPACING)
    for metric in METRICS:
        one = score(*pair, 3, SPACING, [metric])
        assert set(one) == {"pred_ml", "ref_ml", metric}
        np.testing.assert_array_equal(one[metric], every[metric])


def test_the_definitions_are_of_what_was_measured():
    assert [line.partition(":")[0] for line in definitions(["dice"])[:-1]] == ["dice"]
    assert "at most 2.5 mm" in " ".join(definitions(METRICS, 2.5))
    assert any(line.startswith("surface distance") for line in definitions(["nsd"]))


# ---- against others


def one_hot(labels, k):
    return torch.tensor(np.moveaxis(np.eye(k)[labels], -1, 0)[None])


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")  # MONAI's call of its own
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING], ids=str)
def test_is_monais(rng, spacing):
    """Dice, HD95 (its percentile 95), ASSD (its symmetric average) and NSD (its surface Dice in voxels, not the one by surface area)."""
    k, tolerance = 6, 1.5
    prediction, reference = blobs(rng, (24, 20, 14), k)
    ours = score(prediction, reference, k, spacing, tolerance=tolerance)
    assert np.ptp(ours["hd95"][1:]) > 0.5 and ours["nsd"][1:].max() < 0.98
    pair = one_hot(prediction, k), one_hot(reference, k)
    theirs = {
        "dice": DiceMetric(include_background=True)(*pair),
        "hd95": HausdorffDistanceMetric(percentile=95)(*pair, spacing=spacing),
        "assd": SurfaceDistanceMetric(symmetric=True)(*pair, spacing=spacing),
        "nsd": SurfaceDiceMetric([tolerance] * (k - 1))(*pair, spacing=spacing),
    }
    for name, values in theirs.items():
        mine = ours[name] if name == "dice" else ours[name][1:]
        # MONAI measures in single precision, except for overlap.
        np.testing.assert_allclose(mine, values[0].numpy(), rtol=1e-7 if name == "dice" else 1e-5, err_msg=name)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy", "ignore:.* may result in nan/inf distance")
def test_monai_leaves_a_missed_structure_out_and_we_do_not():
    there, nothing = box((6, 6, 6), (1, 1, 1), (3, 3, 3)), np.zeros((6, 6, 6), np.int32)
    theirs = HausdorffDistanceMetric(percentile=95)(one_hot(nothing, 2), one_hot(there, 2))
    assert not torch.isfinite(theirs).any()
    assert of(score(nothing, there, 2, (1.0, 1.0, 1.0)))["hd95"] == pytest.approx(np.sqrt(75))


def test_distances_are_those_of_a_distance_transform(rng):
    pair = blobs(rng, (30, 24, 20), 3, noise=2.0)
    masks = [labels == 1 for labels in pair]
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    to_prediction, to_reference = (ndimage.distance_transform_edt(~s, sampling=SPACING) for s in surfaces)
    there, back = to_reference[surfaces[0]], to_prediction[surfaces[1]]
    for mine, theirs in zip(surface_distances(*masks, SPACING, np.nan), (there, back), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    scores = of(score(*pair, 3, SPACING))
    assert scores["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-12)
    assert scores["assd"] == pytest.approx((there.sum() + back.sum()) / (len(there) + len(back)), rel=1e-12)


def test_scores_do_not_depend_on_where_in_the_image_a_structure_lies(rng):
    """The boxes that are cut out change nothing."""
    prediction, reference = blobs(rng, (10, 12, 8), 3)
    wide = [np.pad(labels, ((5, 1), (0, 7), (3, 2))) for labels in (prediction, reference)]
    inner = [np.pad(labels, 1) for labels in (prediction, reference)]
    scores, again = score(*inner, 3, SPACING), score(*wide, 3, SPACING)
    for name in ("hd95", "assd", "nsd"):
        np.testing.assert_allclose(scores[name], again[name], rtol=1e-12)
