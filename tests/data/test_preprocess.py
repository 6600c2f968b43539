"""Standardisation against MONAI's own transforms as the oracle, against numbers worked out by hand, and against the laws of affines."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from native import restore
from scipy import ndimage

from brainseg_jax.core.errors import InputError
from brainseg_jax.data import preprocess as std
from brainseg_jax.data.nifti import Scan, reorient

IXI = Path(os.environ.get("BRAINSEG_IXI2MM", "ixi2mm"))
WHITE = range(81, 89)  # DLMUSE ids of cerebral white matter; 51 and 52 are the lateral ventricles


def affine_of(spacing, turn=(0.0, 0.0, 0.0), axes="RAS", translation=(-40.0, 25.0, 12.5)):
    """Voxel edges (mm), rotation (degrees about x, y, z), and what the array axes are called before it."""
    from scipy.spatial.transform import Rotation

    base = np.zeros((3, 3))
    for k, letter in enumerate(axes):
        row = next(r for r, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        base[row, k] = 1 if letter in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ base * np.array(spacing)
    affine[:3, 3] = translation
    return affine


def head(shape, seed=0, dark=0.3):
    """A smooth random blob on noise-free black: an image with a foreground."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    blob = ndimage.gaussian_filter(rng.random(shape), 1.0).astype(np.float32)
    centre = [(np.arange(n) - (n - 1) / 2 + 0.7) / (n / 2) for n in shape]
    radius = sum(np.meshgrid(*[c**2 for c in centre], indexing="ij"))
    return np.where(radius < 1 - dark, 300 * blob, 0).astype(np.float32)


def monai_paper(image, labels, affine, spacing, size):
    """The transforms of the reproduced code, in its order (mae_data_utils.py)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from monai import transforms
        from monai.data import MetaTensor

        keys = ["image", "label"]
        pipeline = transforms.Compose(
            [
                transforms.Orientationd(keys, axcodes="RSP", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
                transforms.Spacingd(keys, pixdim=(spacing,) * 3, mode=("bilinear", "nearest")),
                transforms.ScaleIntensityRangePercentilesd(["image"], lower=5, upper=95, b_min=0.0, b_max=1.0, clip=True),
                transforms.CropForegroundd(keys, source_key="image", k_divisible=list(size)),
                transforms.SpatialPadd(keys, spatial_size=size),
                transforms.CenterSpatialCropd(keys, roi_size=size),
            ]
        )
        out = pipeline(
            {
                "image": MetaTensor(torch.from_numpy(image[None].copy()), affine=torch.from_numpy(affine)),
                "label": MetaTensor(torch.from_numpy(labels[None].astype(np.float32)), affine=torch.from_numpy(affine)),
            }
        )
        return out["image"][0].numpy(), out["image"].affine.numpy(), out["label"][0].numpy().astype(int)


# Spacings at which no resampled voxel falls exactly on a source voxel: there MONAI's rounding error (10⁻¹⁵ of the neighbour) counts as
# foreground in an image whose background is exactly 0, and may move its window by a voxel.
CASES = {
    "identity": ((20, 22, 18), affine_of((1, 1, 1)), 1.0, (16, 16, 16)),
    "ras to 1 mm": ((20, 17, 12), affine_of((0.913, 1.137, 2.317)), 1.0, (24, 24, 24)),
    "flips, odd size": ((15, 18, 13), affine_of((1.313, 0.717, 1.913), axes="LPI"), 1.0, (17, 19, 21)),
    "sagittal storage": ((16, 15, 14), affine_of((1.717, 1.717, 1.237), axes="PSR"), 2.0, (12, 13, 14)),
    "oblique": ((18, 16, 14), affine_of((1.137, 0.823, 1.717), turn=(12, -7, 20)), 1.0, (24, 20, 24)),
    "oblique and flipped": ((17, 16, 15), affine_of((0.831, 1.937, 1.213), turn=(-9, 15, 4), axes="LIA"), 1.0, (15, 32, 16)),
    "larger than the window": ((30, 31, 29), affine_of((1.217, 1.213, 1.337)), 1.0, (12, 13, 16)),
    "more than twice the window": ((30, 31, 29), affine_of((1.217, 1.213, 1.337)), 1.0, (9, 11, 8)),
    "nearly the spacing": ((16, 15, 14), affine_of((1.0004, 0.9995, 1.0)), 1.0, (16, 16, 16)),
    "sheared": (
        (16, 15, 14),
        affine_of((1.217, 1.137, 1.337)) @ np.array([[1, 0.08, 0, 0], [0, 1, 0.05, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        1.0,
        (20,) * 3,
    ),
    "sheared the other way": (
        (16, 15, 14),
        affine_of((1.217, 1.137, 1.337)) @ np.array([[1, -0.08, 0, 0], [0, 1, -0.05, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        1.0,
        (20,) * 3,
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_paper_equals_monai(case):
    shape, affine, spacing, size = CASES[case]
    image = head(shape)
    labels = (np.random.default_rng(1).integers(0, 60, shape) * (image > 0)).astype(np.int32)
    want, want_affine, want_labels = monai_paper(image, labels, affine, spacing, size)
    spec = std.spec("paper", spacing, size)
    got, got_affine, record = std._standardize_float(Scan(image, affine), spec, "scan")
    np.testing.assert_allclose(got_affine, want_affine, atol=1e-8)
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_array_equal(std.standardize_labels(Scan(labels, affine), record), want_labels)


@pytest.mark.parity
def test_paper_equals_monai_with_float32_header():
    """An oblique header rounded to float32 is not quite orthogonal: MONAI then aligns centres instead of corners, and so do we."""
    affine = affine_of((0.9, 0.9, 1.7), turn=(12, -7, 20)).astype(np.float32).astype(np.float64)
    image = head((18, 16, 14))
    want, want_affine, _ = monai_paper(image, image > 0, affine, 1.0, (24, 24, 24))
    got, got_affine, _ = std._standardize_float(Scan(image, affine), std.spec("paper", 1.0, (24, 24, 24)), "scan")
    np.testing.assert_allclose(got_affine, want_affine, atol=1e-8)
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parity
def test_ties_are_the_only_difference_from_monai():
    """2 mm to 1 mm puts every other voxel midway between two; which one MONAI takes is up to rounding error, here it is the even one."""
    image = head((11, 13, 10))
    labels = (np.random.default_rng(1).integers(0, 60, image.shape) * (image > 0)).astype(np.int32)
    affine = affine_of((2, 2, 2), axes="RSP")
    want, _, want_labels = monai_paper(image, labels, affine, 1.0, (24, 24, 24))
    got, _, record = std._standardize_float(Scan(image, affine), std.spec("paper", 1.0, (24, 24, 24)), "scan")
    np.testing.assert_allclose(got, want, atol=1e-5)
    index = np.stack(np.meshgrid(*[s + np.arange(24) for s in record["start"]], indexing="ij"))
    untied = np.all(index % 2 == 0, axis=0)
    np.testing.assert_array_equal(std.standardize_labels(Scan(labels, affine), record)[untied], want_labels[untied])


def test_paper_by_hand():
    """A line of 5 voxels at 2 mm becomes 9 at 1 mm; box 1…7 of those above 0; window of 8."""
    image = np.zeros((5, 3, 3), np.float32)
    image[1:4, 1, 1] = [4, 8, 4]
    # By hand along the line: 0 2 4 6 8 6 4 2 0; across it the same tent of half-width 2 mm, so 25 columns hold 9·(1, ½, ¼) of the line.
    scan = Scan(image, affine_of((2, 2, 2), axes="RSP", translation=(0, 0, 0)))
    got, affine, record = std._standardize_float(scan, std.spec("paper", 1.0, (8, 8, 8)), "scan")
    assert record["low"] == 0 and record["resampled_shape"] == [9, 5, 5]
    assert record["start"] == [1, 0 - 1, 0 - 1]  # box of 7 in 8: the odd voxel is at the high end; box of 3 (1…3) in 8: 2 below
    high = record["high"]  # the 95th of 225 values, linear: rank 212.8
    values = np.sort(np.einsum("i,j,k->ijk", [0, 2, 4, 6, 8, 6, 4, 2, 0], [0, 0.5, 1, 0.5, 0], [0, 0.5, 1, 0.5, 0]).ravel())
    assert high == pytest.approx(0.2 * values[212] + 0.8 * values[213])
    np.testing.assert_allclose(got[:, 3, 3], np.clip(np.array([2, 4, 6, 8, 6, 4, 2, 0]) / high, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(affine[:3, 3], scan.affine[:3, :3] @ [0.5, -0.5, -0.5])
    stored = std.standardize(scan, std.spec("paper", 1.0, (8, 8, 8)))
    assert stored.image.dtype == np.uint8
    np.testing.assert_array_equal(stored.image, np.rint(got * np.float32(255)))


@pytest.mark.parametrize("name", ["paper", "default"])
@pytest.mark.parametrize("axes,turn", [("RAS", (0, 0, 0)), ("PSR", (0, 0, 0)), ("LIA", (8, -12, 5))])
def test_a_marked_voxel_keeps_its_place(name, axes, turn):
    affine = affine_of((1.5, 2, 1.2), turn, axes)
    image = head((40, 32, 44), dark=0.4)
    marked = np.array([21, 15, 20])
    labels = np.zeros(image.shape, np.int32)
    labels[tuple(marked)] = 300
    out = std.standardize(Scan(image, affine), std.spec(name, 0.5, (140, 140, 140)))
    moved = std.standardize_labels(Scan(labels, affine), out.record)
    assert moved.dtype == np.uint16 and moved.shape == out.image.shape
    place = (out.affine @ [*np.argwhere(moved == 300).mean(0), 1])[:3]
    np.testing.assert_allclose(place, (affine @ [*marked, 1])[:3], atol=0.5)
    assert std.spec_of(json.loads(json.dumps(out.record, allow_nan=False))) == std.spec(name, 0.5, (140, 140, 140))


@pytest.mark.parametrize("name", ["paper", "default"])
def test_labels_come_back_to_the_scans_grid(name):
    affine = affine_of((1.5, 2, 1.2), (8, -12, 5), "LIA")
    image = head((30, 24, 34))
    labels = np.where(image > 0, np.random.default_rng(2).integers(1, 9, image.shape), 0).astype(np.int32)
    record = std.standardize(Scan(image, affine), std.spec(name, 0.5, (128, 128, 128))).record
    back = restore(std.standardize_labels(Scan(labels, affine), record), record)
    np.testing.assert_array_equal(back, labels)


@pytest.mark.parametrize("codes", ["LAS", "PSR", "SAL"])
def test_labels_in_another_order_of_voxels_are_turned_onto_the_images(codes):
    scan = Scan(head((20, 24, 22)), affine_of((1.5, 1, 1.2), (8, -12, 5), "RSP"))
    record = std.standardize(scan, std.spec("default", 1.0, (16, 16, 16))).record
    labels = Scan(np.random.default_rng(2).integers(1, 9, scan.voxels.shape), scan.affine)
    turned = reorient(labels, codes)
    assert not np.array_equal(turned.affine, scan.affine)
    np.testing.assert_array_equal(std.standardize_labels(turned, record), std.standardize_labels(labels, record))


def test_labels_on_another_grid_are_refused():
    scan = Scan(head((20, 20, 20)), affine_of((1, 1, 1)))
    record = std.standardize(scan, std.spec("paper", 1.0, (16, 16, 16))).record
    labels = np.ones((20, 20, 20), np.int32)
    rounded = scan.affine.astype(np.float32).astype(np.float64)
    rounded[:3] += 1e-4
    std.standardize_labels(Scan(labels, rounded), record)
    with pytest.raises(InputError, match=r"a\.nii: its \(20, 20, 19\) voxels are not the \(20, 20, 20\) of its image; re"):
        std.standardize_labels(Scan(labels[..., 1:], scan.affine), record, "a.nii")
    with pytest.raises(InputError, match=r"up to 0\.5 voxels away"):
        std.standardize_labels(Scan(labels, affine_of((1, 1, 1), translation=(-40.5, 25, 12.5))), record)
    with pytest.raises(InputError, match="voxels away"):
        std.standardize_labels(Scan(labels, affine_of((1, 1, 1), axes="LAS")), record)
    with pytest.raises(InputError, match="read_labels"):
        std.standardize_labels(Scan(labels.astype(np.float32), scan.affine), record)


@pytest.mark.parametrize("name", ["paper", "default"])
def test_nothing_to_scale(name):
    for image in (np.zeros((20, 20, 20), np.float32), np.full((20, 20, 20), 7, np.float32)):
        with pytest.raises(InputError, match=r"empty\.nii: .*check"):
            std.standardize(Scan(image, affine_of((1, 1, 1))), std.spec(name, 1.0, (16, 16, 16)), "empty.nii")
    dot = np.zeros((20, 20, 20), np.float32)
    dot[8:12, 8:12, 8:12] = 5  # below 5 % of the volume: the paper's percentiles are both 0, ours are not
    if name == "paper":
        with pytest.raises(InputError, match="default standardisation"):
            std.standardize(Scan(dot, affine_of((1, 1, 1))), std.spec(name, 1.0, (16, 16, 16)))


def test_unusable_specs():
    for given, words in (
        ({"name": "ours"}, "paper or default"),
        ({"name": "paper", "spacing": 0.0}, "millimetres"),
        ({"name": "paper", "size": (96, 96)}, "three"),
        ({"name": "paper", "dtype": "int8"}, "uint8 or float16"),
    ):
        with pytest.raises(InputError, match=words):
            std.spec(**given)


def body(length):
    """A 1 mm head: a ball of 60 mm at the top, on a neck that reaches down to make it `length` mm long; and its coordinates."""
    x, y, z = np.meshgrid(np.arange(100) - 50, np.arange(120) - 50, np.arange(length + 10) - length + 25, indexing="ij")
    image = np.where(x**2 + y**2 + z**2 < 30**2, 100.0, 0)
    image = np.where((x**2 + y**2 < 12**2) & (z < -20), np.maximum(image, 80), image)
    return image.astype(np.float32), (x, y, z)


def test_the_neck_is_cut_and_not_the_vertex():
    image, (_, _, z) = body(120)
    head_voxels = (image > 90) & (z > -30)
    for axes in ("RAS", "RAI", "SRA"):
        order = {"RAS": (0, 1, 2), "RAI": (0, 1, 2), "SRA": (2, 0, 1)}[axes]
        turned = np.ascontiguousarray((image[:, :, ::-1] if axes == "RAI" else image).transpose(order))
        kept = np.ascontiguousarray((head_voxels[:, :, ::-1] if axes == "RAI" else head_voxels).transpose(order)).astype(np.int32)
        scan = Scan(turned, affine_of((1, 1, 1), axes=axes))
        out = std.standardize(scan, std.spec("default", 1.0, (64, 64, 64)))
        assert std.standardize_labels(Scan(kept, scan.affine), out.record).sum() == kept.sum()
        top = np.nonzero((out.image > 0).any((0, 1)))[0].max()
        assert top == 63  # the vertex lies on the window's last layer, the neck is what was cut
    paper = std.standardize(scan, std.spec("paper", 1.0, (64, 64, 64)))
    assert std.standardize_labels(Scan(kept, scan.affine), paper.record).sum() < kept.sum()


def test_the_nose_does_not_move_the_window(monkeypatch):
    monkeypatch.setattr(std, "FOREHEAD_MM", 30.0)  # this head is a third of a real one
    image, (x, y, z) = body(70)
    nose = (np.abs(x) < 8) & (y > 0) & (y < 55) & (np.abs(z + 14) < 8)
    plain = std.standardize(Scan(image, affine_of((1, 1, 1))), std.spec("default", 1.0, (64, 64, 64)))
    long = std.standardize(
        Scan(np.maximum(image, 70 * nose.astype(np.float32)), affine_of((1, 1, 1))), std.spec("default", 1.0, (64, 64, 64))
    )
    assert plain.record["start"] == long.record["start"]


def test_default_leaves_noise_and_specks_outside():
    rng = np.random.default_rng(0)
    image, _ = body(60)
    image = np.abs(image + rng.normal(0, 2, image.shape)).astype(np.float32)
    image[2:4, 2:4, 2:4] = 100  # a ghost in a corner
    scan = Scan(image, affine_of((1, 1, 1)))
    mask, low = std._foreground(image, std.spec("default", 1.0), "scan")
    assert not mask[:10, :10, :10].any() and mask.mean() == pytest.approx((image > 30).mean(), rel=0.02)
    assert 0 <= low < 1  # the 2nd percentile of the noise
    assert std.standardize(scan, std.spec("default", 1.0, (64, 64, 64))).record["high"] == pytest.approx(100, abs=8)


def test_smoothing_when_downsampling():
    """σ = √(9 − 1)/2.355 = 1.2011 source voxels for 1 mm → 3 mm, by hand; none up to the limit of 1.5, none in the paper's spec."""
    impulse = np.zeros((31, 3, 3), np.float32)
    impulse[15] = 1
    out = std._smooth_for(impulse, np.array([3.0, 1.0, 1.5]), 1.5)
    spread = np.sqrt((out[:, 1, 1] * (np.arange(31) - 15) ** 2).sum())
    assert spread == pytest.approx(1.2011, abs=2e-3) and out.sum() == pytest.approx(impulse.sum(), rel=1e-5)
    stripes = np.zeros((60, 60, 60), np.float32)
    stripes[10:50, 10:50, 10:50] = 40
    stripes[12:50:3, 10:50, 10:50] = 100  # samples every 3 mm from index 0 on, at 12, 15, …, see these only; the mean is 60
    scan = Scan(stripes, affine_of((1, 1, 1)))
    seen = []
    for name in ("paper", "default"):
        image, affine, record = std._standardize_float(scan, std.spec(name, 3.0, (20, 20, 20)), "scan")
        middle = image[tuple(np.rint(np.linalg.solve(affine, [*(scan.affine @ [30, 30, 30, 1])])).astype(int)[:3])]
        seen.append(record["low"] + middle * (record["high"] - record["low"]))
    assert seen[0] == pytest.approx(100, abs=0.1)
    assert seen[1] == pytest.approx(60, abs=5)


def test_float16_holds_the_values():
    scan = Scan(head((20, 20, 20)), affine_of((1, 1, 1)))
    half = std.standardize(scan, std.spec("paper", 1.0, (16, 16, 16), "float16"))
    whole = std.standardize(scan, std.spec("paper", 1.0, (16, 16, 16)))
    assert half.image.dtype == np.float16
    np.testing.assert_allclose(half.image.astype(float), whole.image / 255, atol=0.5 / 255 + 1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not IXI.is_dir(), reason="set BRAINSEG_IXI2MM to a folder with the IXI scans at 2 mm and their DLMUSE labels")
def test_real_heads_keep_their_brains():
    """IXI heads at 2 mm in 96³: the default window loses no brain voxel, and ventricles lie apart from air and from white matter."""
    from brainseg_jax.data.nifti import read, read_labels

    for path in sorted((IXI / "t1").glob("*.nii.gz"))[::12]:
        scan, labels = read(path), read_labels(IXI / "labels" / path.name.replace("_T1", "_T1_DLMUSE"))
        out = std.standardize(scan, std.spec("default", 2.0, (96, 96, 96)))
        moved = std.standardize_labels(labels, out.record)
        assert (moved > 0).sum() == (labels.voxels > 0).sum(), path.name
        air = np.percentile(out.image[:8, :, -20:], 95)  # a corner above the shoulders
        ventricles, white = (np.median(out.image[np.isin(moved, list(ids))]) for ids in ((51, 52), WHITE))
        assert air + 30 < ventricles < white - 40 < 255 - 40, (path.name, air, ventricles, white)


# ---- several images of one head


def marked(codes, spacing, shape, shift=(0.0, 0.0, 0.0)):
    """A head of two ellipsoids, of which one image is made on any grid; its affine."""
    axes = np.zeros((3, 3))
    for k, letter in enumerate(codes):
        axes["LRPAIS".index(letter) // 2, k] = 1 if letter in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = np.array(shift) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    at = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    head = np.sum((at / (34, 40, 38)) ** 2, -1) < 1
    mark = np.sum(((at - (12, 8, 10)) / 9) ** 2, -1) < 1
    return np.where(mark, 200, 100 * head).astype(np.float32) + 3, affine


@pytest.mark.parametrize("name", ["default", "paper"])
@pytest.mark.parametrize(("codes", "spacing"), [("LIA", (1.7, 2.3, 2.0)), ("RAS", (2.0, 2.0, 4.0))])
def test_images_on_other_grids_lie_voxel_on_voxel(name, codes, spacing):
    shape = tuple(int(n) for n in np.ceil(110 / np.array(spacing)))
    scans = [Scan(*marked("PSR", (2.0, 2.1, 1.9), (54, 52, 56))), Scan(*marked(codes, spacing, shape, (3, -4, 2)))]
    chosen = std.spec(name, 2.0, (48, 48, 48))
    both = std.standardize_all(scans, chosen, ["t1", "flair"])
    alone = std.standardize(scans[0], chosen)
    np.testing.assert_array_equal(both.image[..., 0], alone.image)
    assert both.image.shape == (48, 48, 48, 2) and both.record == alone.record
    np.testing.assert_array_equal(std.standardize_all(scans[:1], chosen, ["t1"]).image[..., 0], alone.image)
    centres = [np.array(ndimage.center_of_mass(both.image[..., c] > 190)) for c in range(2)]
    np.testing.assert_allclose(*centres, atol=0.3)
    # Scaled by itself: another gain and offset of the second image change nothing.
    louder = scans[1]._replace(voxels=scans[1].voxels * 7 + 40)
    np.testing.assert_allclose(std.standardize_all([scans[0], louder], chosen, ["t1", "flair"]).image[..., 1], both.image[..., 1], atol=1)


def test_where_a_further_image_does_not_reach_is_0_and_too_little_is_refused():
    scan = Scan(*marked("RAS", (2.0, 2.0, 2.0), (56, 56, 56)))
    voxels, affine = marked("RAS", (2.0, 2.0, 2.0), (56, 56, 56))
    chosen = std.spec("default", 2.0, (56, 56, 56))
    slab = Scan(voxels[:, :, 14:42], affine @ std._shift((0, 0, 14)))  # inside the first's field of view, all of it
    image = std.standardize_all([scan, slab], chosen, ["t1", "slab"]).image
    start = std.standardize(scan, chosen).record["start"][2]
    low, high = 14 - start, 42 - start
    assert not image[:, :, :low, 1].any() and not image[:, :, high:, 1].any() and image[28, 28, low:high, 1].all()
    away = Scan(voxels, affine @ std._shift((40, 0, 0)))
    with pytest.raises(InputError, match="flair: shares only 29% of its field of view with t1; register the two first"):
        std.standardize_all([scan, away], chosen, ["t1", "flair"])
