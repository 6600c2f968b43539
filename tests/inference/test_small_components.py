"""What lies apart from its structure becomes what is around it, if it is small."""

import numpy as np
import pytest

from brainseg_jax.data.labels import connected_structures, parse_table, read_table
from brainseg_jax.inference.small_components import relabel_small_components

TABLE = parse_table(
    "id\tname\tfreesurfer\tpartner\ttissue\n"
    "1\tLeft cortex\t3\t2\tcortex\n2\tRight cortex\t42\t1\tcortex\n"
    "3\tVentricle\t14\t3\tcsf\n4\tSpots\t77\t4\twhite matter\n5\tOwn\t\t5\tother\n",
    "islands",
)
LEFT, RIGHT, VENTRICLE, SPOTS, OWN = range(1, 6)


@pytest.fixture
def head():
    """Two halves of 200 voxels each, side by side in air."""
    classes = np.zeros((14, 12, 10), np.uint8)
    classes[1:6, 1:9, 1:6] = LEFT
    classes[6:11, 1:9, 1:6] = RIGHT
    return classes


def changed(classes):
    after = classes.copy()
    relabel_small_components(after, TABLE)
    return {tuple(map(int, place)): int(after[tuple(place)]) for place in np.argwhere(after != classes)}


def test_what_hangs_together():
    assert connected_structures(TABLE) == [LEFT, RIGHT]
    names = {s.name for n, s in enumerate(read_table("freesurfer").structures, 1) if n in connected_structures(read_table("freesurfer"))}
    assert {"Left hippocampus", "Brain stem"} <= names and not {"White matter hypointensities", "Left lateral ventricle"} & names


def test_a_sound_head_stays(head):
    assert changed(head) == {}
    assert changed(np.zeros((4, 4, 4), np.uint8)) == {}


def test_an_island_becomes_what_most_of_the_voxels_around_it_are(head):
    head[8, 3:6, 2] = LEFT
    assert changed(head) == {(8, y, 2): RIGHT for y in (3, 4, 5)}
    head[8, 1, 5] = LEFT  # on an edge of the head: 11 of 26 around it are right cortex, 15 are air
    assert changed(head) == {(8, y, 2): RIGHT for y in (3, 4, 5)} | {(8, 1, 5): 0}


def test_at_the_images_edge_too(head):
    corner = head[1:11, 1:9, 1:6].copy()
    corner[9, 7, 4] = LEFT
    assert changed(corner) == {(9, 7, 4): RIGHT}
    corner[9, :2, 0] = LEFT
    assert changed(corner) == {(9, 7, 4): RIGHT, (9, 0, 0): RIGHT, (9, 1, 0): RIGHT}


def test_what_lies_outside_the_head_is_background(head):
    head[13, 11, 7:9] = VENTRICLE
    head[13, 11, 9] = OWN
    assert changed(head) == {(13, 11, z): 0 for z in (7, 8, 9)}


@pytest.mark.parametrize(("voxels", "stays"), [(9, False), (10, False), (11, True)])
def test_what_has_over_a_twentieth_of_the_largest_piece_stays(head, voxels, stays):
    head[8, 2 + np.arange(voxels) // 5, 1 + np.arange(voxels) % 5] = LEFT
    assert len(changed(head)) == (0 if stays else voxels)


@pytest.mark.parametrize("kind", [VENTRICLE, SPOTS, OWN])
def test_what_is_in_pieces_in_people_stays(head, kind):
    head[2:5, 3, 3] = head[8, 3, 3] = kind
    assert changed(head) == {}


def test_pieces_that_touch_by_a_corner_are_one(head):
    head[6, 9, 6] = LEFT  # beside (5, 8, 5), the left half's corner
    assert changed(head) == {}


def test_an_island_within_an_island_goes_with_it(head):
    """Left within right within left: each looks at what is there when it is its turn, and none is left over."""
    head[2:5, 3:6, 2] = RIGHT
    head[3, 4, 2] = LEFT
    assert set(changed(head).values()) == {LEFT}
    after = head.copy()
    relabel_small_components(after, TABLE)
    assert changed(after) == {}
