"""What lies apart from its structure goes to what is around it, if it is small."""

import numpy as np
import pytest

from brainseg_jax import islands
from brainseg_jax.data.labels import connected, parse_table, read_table

TABLE = parse_table(
    "id\tname\tfreesurfer\tpartner\ttissue\n"
    "1\tLeft cortex\t3\t2\tcortex\n2\tRight cortex\t42\t1\tcortex\n"
    "3\tVentricle\t14\t3\tcsf\n4\tSpots\t77\t4\twhite matter\n5\tOwn\t\t5\tother\n",
    "islands",
)
LEFT, RIGHT, VENTRICLE, SPOTS, OWN = range(1, 6)


@pytest.fixture
def soft():
    """A head of two halves in air: 200 of the left of 300 voxels below, on the right a cube in the air's far corner."""
    classes = np.zeros((14, 12, 10), np.int64)
    classes[1:6, 1:9, 1:6] = LEFT
    classes[6:11, 1:9, 1:6] = RIGHT
    return certain(classes)


def certain(classes, k=6):
    """Bytes that say so for sure: 200 for the class, 40 for the right cortex, 15 for the background."""
    soft = np.zeros((k, *classes.shape), np.uint8)
    np.put_along_axis(soft, classes[None], 200, axis=0)
    soft[RIGHT] += 40
    soft[0] += 15
    return soft


def test_what_hangs_together():
    assert connected(TABLE) == [LEFT, RIGHT]
    names = {s.name for n, s in enumerate(read_table("freesurfer").structures, 1) if n in connected(read_table("freesurfer"))}
    assert {"Left hippocampus", "Brain stem"} <= names and not {"White matter hypointensities", "Left lateral ventricle"} & names


def test_an_island_goes_to_the_next_likeliest_class(soft):
    island = (slice(8, 10), slice(3, 6), slice(2, 3))  # 6 of 200 voxels
    soft[:, *island] = certain(np.full((2, 3, 1), LEFT))
    gained = islands.dissolve(soft, TABLE)
    assert set(soft[:, *island].argmax(axis=0).ravel()) == {RIGHT}
    assert soft[:, 8, 3, 2].tolist() == [15, 0, 240, 0, 0, 0]
    assert gained.tolist() == [0, -6 * 200, 6 * 200, 0, 0, 0]


def test_one_outside_the_head_is_background(soft):
    soft[:, 13, 11, 8:10] = certain(np.array([VENTRICLE, OWN]))
    gained = islands.dissolve(soft, TABLE)
    assert soft[:, 13, 11, 8].tolist() == [255, 0, 0, 0, 0, 0]
    assert gained.tolist() == [2 * 240, 0, -2 * 40, -200, 0, -200]


@pytest.mark.parametrize(("voxels", "stays"), [(10, False), (11, True)])
def test_what_has_over_a_twentieth_of_the_largest_piece_stays(soft, voxels, stays):
    soft[:, 8, 2:4, 1:6] = certain(np.full((2, 5), LEFT))
    if voxels == 11:
        soft[:, 8, 4, 1:2] = certain(np.full(1, LEFT))
    before = soft.copy()
    islands.dissolve(soft, TABLE)
    assert (soft == before).all() == stays


@pytest.mark.parametrize("kind", [VENTRICLE, SPOTS, OWN])
def test_what_is_in_pieces_in_people_stays(soft, kind):
    soft[:, 2:5, 3, 3] = certain(np.full(3, kind))
    soft[:, 8, 3, 3] = certain(np.full((), kind))
    before = soft.copy()
    assert not islands.dissolve(soft, TABLE).any()
    np.testing.assert_array_equal(soft, before)


def test_pieces_that_touch_by_a_corner_are_one(soft):
    soft[:, 6, 8, 5] = certain(np.full((), RIGHT))
    soft[:, 6, 9, 6] = certain(np.full((), LEFT))  # by an edge of the left half's corner voxel
    before = soft.copy()
    islands.dissolve(soft, TABLE)
    np.testing.assert_array_equal(soft, before)


def test_nothing_is_made_of_an_empty_label_map():
    soft = certain(np.zeros((4, 4, 4), np.int64))
    assert not islands.dissolve(soft, TABLE).any() and (soft.argmax(axis=0) == 0).all()
