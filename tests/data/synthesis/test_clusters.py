"""Classes of a head's intensities: known ones get the classes they should, brightest last; air and brain stay what they are."""

import numpy as np
import pytest

from brainseg_jax.data.labels import lookup, read_table
from brainseg_jax.data.synthesis.clusters import with_intensities

HEADS = read_table("head")
IDS = np.array([0, *(s.id for s in HEADS.structures)])


def known():
    """(classes, image, id expected): a brain in layers of six intensities, around it air; within one layer a sinus."""
    n = 32
    depth = np.abs(np.indices((n, n, n)) - (n - 1) / 2).max(0)  # cubes in one another
    brain = lookup(np.where(depth < 3, 2, np.where(depth < 5, 3, 0)).astype(np.uint8), read_table("freesurfer"), HEADS)
    image, ids = np.zeros((n, n, n), np.float32), np.zeros((n, n, n), int)
    for k, (id, value) in enumerate(((604, 0.5), (606, 0.9), (602, 0.2), (603, 0.35), (605, 0.7))):
        layer = (depth >= 5 + 2 * k) & (depth < 7 + 2 * k)
        image[layer], ids[layer] = value, id
    image[depth < 5] = 0.6
    image[8:10, 15:18, 15:18], ids[8:10, 15:18, 15:18] = 0.02, 601
    return brain, image, np.where(brain > 0, IDS[brain], ids)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_known_intensities_outside_the_brain_get_ascending_ids(dtype):
    brain, image, expected = known()
    stored = np.rint(255 * image).astype(dtype) if dtype == np.uint8 else image.astype(dtype)
    found = with_intensities(brain, stored, HEADS)
    assert found.dtype == brain.dtype
    wrong = IDS[found] != expected
    np.testing.assert_array_equal(found[brain > 0], brain[brain > 0])
    assert not wrong[expected == 0].any()  # air
    # The opening takes the edges of the outermost cube for noise.
    edges = (np.minimum(np.indices(image.shape), 31 - np.indices(image.shape)) <= 1).sum(0) >= 2
    assert not wrong[~edges].any()


def test_equal_scans_get_equal_classes():
    brain, image, _ = known()
    np.testing.assert_array_equal(with_intensities(brain, image, HEADS), with_intensities(brain.copy(), image.copy(), HEADS))


def test_of_a_black_image_nothing_is_made():
    brain, image, _ = known()
    np.testing.assert_array_equal(with_intensities(brain, 0 * image, HEADS), brain)
    np.testing.assert_array_equal(with_intensities(0 * brain, 0 * image, HEADS), 0 * brain)


def test_specks_in_the_air_are_no_head():
    brain, image, _ = known()
    wide, bright = (np.pad(a, 4) for a in (brain, image))
    bright[1, 1, 1] = bright[2, 38, 1] = 1.0
    found = with_intensities(wide, bright, HEADS)
    assert found[1, 1, 1] == found[2, 38, 1] == 0 and (found > 0).sum() > 0.9 * 30**3
