"""Label maps that cannot be right: the sample's turned, moved, exchanged and interpolated are told, and good ones never."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from brainseg_jax.data.label_checks import check_label_map, interpolated
from brainseg_jax.data.labels import parse_table, read_table
from brainseg_jax.data.nifti import Scan, read, read_labels, reorient
from brainseg_jax.data.sample import template

IXI = Path(os.environ.get("BRAINSEG_IXI2MM", "ixi2mm"))
FREESURFER, BRAIN = read_table("freesurfer"), read_table("brain")


@pytest.fixture(scope="module")
def head():
    """The template at 2 mm: image, labels, affine."""
    image, labels, _ = template()
    every = (slice(None, None, 2),) * 3
    return image.voxels[every], labels.voxels[every], image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.mark.parametrize("codes", ["RAS", "LIA", "PSR"])
def test_a_good_map_gives_none(head, codes):
    image, labels = (reorient(Scan(voxels, head[2]), codes) for voxels in head[:2])
    assert check_label_map(labels.voxels, image.voxels, image.affine, FREESURFER) == []
    assert check_label_map((labels.voxels > 0).astype(np.int32), image.voxels, image.affine, BRAIN) == []
    assert check_label_map(np.zeros_like(labels.voxels), image.voxels, image.affine, BRAIN) == []


@pytest.mark.parametrize("codes", ["RAS", "LIA", "PSR"])
def test_exchanged_sides(head, codes):
    """The template is symmetric: mirrored labels fit it as well, and only their names tell."""
    image = reorient(Scan(head[0], head[2]), codes)
    mirrored = reorient(Scan(head[1][::-1], head[2]), codes)
    (doubt,) = check_label_map(mirrored.voxels, image.voxels, image.affine, FREESURFER)
    assert doubt.startswith(
        "left and right are exchanged: Left cerebral white matter lies right of Right cerebral white matter, and so 14 of 14"
    )


@pytest.mark.parametrize(("axis", "how"), [(1, "mirrored back–front"), (2, "mirrored feet–head")])
def test_turned_under_the_images_header(head, axis, how):
    image, labels, affine = head
    (doubt,) = check_label_map(np.flip(labels, axis), image, affine, FREESURFER)
    assert doubt.startswith("its structures explain ") and f"% {how}: it may be turned under its image's header" in doubt
    (doubt,) = check_label_map(np.flip(labels > 0, axis).astype(np.int32), image, affine, BRAIN)
    assert how in doubt


def test_of_a_part_of_the_brain_nothing_is_said(head):
    """Mirrored ventricles or hippocampi can fit better by chance; only their sides are told."""
    image, labels, affine = head
    for ids in ((4, 43), (17, 53), (3, 42), (14,)):
        part = np.where(np.isin(labels, ids), labels, 0)
        assert all(check_label_map(np.flip(part, axis), image, affine, FREESURFER) == [] for axis in (1, 2))
        assert len(check_label_map(part[::-1], image, affine, FREESURFER)) == (len(ids) == 2)


def test_exchanged_axes(head):
    image, labels, affine = (np.pad(part, ((9, 9), (0, 0), (9, 9))) if part.ndim == 3 else part for part in head)
    (doubt,) = check_label_map(np.swapaxes(labels, 0, 2), image[..., : image.shape[0]], affine, BRAIN._replace(name="x"))
    assert "with left–right and feet–head exchanged" in doubt


def test_labels_on_air(head):
    image, labels, affine = head
    away = np.roll(labels, 60, axis=1)
    assert any(
        "of its labelled voxels lie on air; check that it is of this scan" in doubt
        for doubt in check_label_map(away, image, affine, FREESURFER)
    )
    lesions = parse_table("id\tname\tpartner\n1\tLesion\t1\n", "lesions")
    assert check_label_map((away > 0).astype(np.int32), image, affine, lesions) == []  # of which nobody knows where they lie


def test_structures_that_are_shells_between_two_others():
    """A ball of 35 in a ball of 1, resampled linearly: what lies between becomes ids between."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 64)] * 3, indexing="ij"))
    radius = (grid**2).sum(0)
    ids = np.select([radius < 0.2, radius < 0.6], [35.0, 1.0], 0.0)
    assert interpolated(ids[::2, ::2, ::2].astype(np.uint16)) == ""
    assert "one voxel thick between a smaller and a larger id" in interpolated(np.rint(ndimage.zoom(ids, 0.5, order=1)).astype(np.uint16))


@pytest.mark.parametrize("resample", [lambda ids: ndimage.zoom(ids, 0.7, order=1), lambda ids: ndimage.shift(ids, 0.5, order=1)])
@pytest.mark.parametrize("classes", [False, True])
def test_interpolated_labels_of_many_structures(head, resample, classes):
    _, labels, _ = head
    if classes:
        labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)  # each id is one of the table's
    assert interpolated(labels.astype(np.uint16)) == ""
    assert "resample labels by nearest neighbour only" in interpolated(np.rint(resample(labels.astype(np.float32))).astype(np.uint16))


@pytest.mark.skipif(not IXI.exists(), reason="the IXI cohort is not here; BRAINSEG_IXI2MM names its folder")
def test_good_maps_of_people_give_none():
    for file in sorted((IXI / "t1").iterdir())[:6]:
        image = read(file)
        labels = read_labels(IXI / "labels" / file.name.replace("_T1", "_T1_DLMUSE"))
        assert check_label_map(labels.voxels, image.voxels, image.affine, read_table("dlmuse")) == []
