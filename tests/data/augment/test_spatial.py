"""Geometry: mirrors that keep left left, one resampling that equals SciPy's, labels that are never mixed, fields of view that are boxes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainseg_jax.core.errors import InputError
from brainseg_jax.data.augment.spatial import (
    affine,
    coordinates,
    cut_field_of_view,
    flip,
    random_affine,
    random_displacement,
    reach,
    resample,
    scales,
)

# Background, a left and a right structure, one in the middle.
SWAP = np.array([0, 2, 1, 3])


@jax.jit
@jax.vmap
def warp(image, labels, matrix, shift, bend):
    return resample(image, labels, coordinates(matrix, shift, bend))


@partial(jax.jit, static_argnums=(4, 5, 6))
def randomly(key, happens, image, labels, limits, nodes, most):
    """A batch under random deformations: rotation, scaling, shear and translation within `limits`, bends within `most`."""

    def one(key, happens, image, labels):
        turn, bend = jax.random.split(key)
        moves = random_affine(turn, happens, *((limit,) * 3 for limit in limits))
        return resample(image, labels, coordinates(*moves, random_displacement(bend, happens, image, [(nodes, most)])))

    return jax.vmap(one)(jax.random.split(key, len(image)), happens, image, labels)


def sides():
    """Labels [6 4 4] whose first axis points right: 1 in the left half, 2 in the right, 3 between; no mirror leaves them as they are."""
    labels = np.zeros((6, 4, 4), np.int32)
    labels[0:2, 1:3, :3], labels[4:6, 1:3, 1:], labels[2:4, 0, 0] = 1, 2, 3
    return jnp.asarray(labels)


def left_is_left(labels):
    """The law: what is labelled left lies at the left end of the axis that points right."""
    labels = np.asarray(labels)
    return bool((labels == 1).any() and (labels == 2).any() and not (labels[3:] == 1).any() and not (labels[:3] == 2).any())


# ---- mirrors


def test_a_mirrored_left_structure_is_a_right_one():
    labels = sides()
    image = labels[..., None] / 4.0
    out, carried = flip(image, labels, 0, "RAS", SWAP)
    np.testing.assert_array_equal(out, np.asarray(image)[::-1])
    np.testing.assert_array_equal(carried, SWAP[np.asarray(labels)[::-1]])
    assert left_is_left(labels) and left_is_left(carried) and carried.dtype == labels.dtype
    # The law is one that can be broken.
    assert not left_is_left(flip(image, labels, 0, "RAS", np.arange(4))[1])


@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 0), ("RSP", 0), ("PSR", 2), ("ALS", 1)])
def test_the_axis_of_sides_is_known_by_its_letter(rng, orientation, axis):
    labels = rng.integers(0, 4, (3, 4, 5)).astype(np.uint8)
    image = rng.random((3, 4, 5, 2), np.float32)
    for k in range(3):
        out, carried = flip(jnp.asarray(image), jnp.asarray(labels), k, orientation, SWAP)
        np.testing.assert_array_equal(out, np.flip(image, k))
        flipped = np.flip(labels, k)
        np.testing.assert_array_equal(carried, SWAP[flipped] if k == axis else flipped)
        if k == axis:
            with pytest.raises(InputError, match=r"without their left/right partners; .*augment\.mirror\.sides=0"):
                flip(jnp.asarray(image), jnp.asarray(labels), k, orientation, None)
        else:
            np.testing.assert_array_equal(flip(jnp.asarray(image), jnp.asarray(labels), k, orientation, None)[1], flipped)


def test_images_alone_need_no_partners_and_partners_must_be_mutual():
    image = jnp.arange(4.0).reshape(4, 1, 1, 1)
    out, none = flip(image, None, 0, "RAS", None)
    assert out.ravel().tolist() == [3, 2, 1, 0] and none is None
    with pytest.raises(InputError, match=r"\[0, 2, 3, 1\] are not mutual"):
        flip(image, jnp.zeros((4, 1, 1), jnp.int32), 0, "RAS", np.array([0, 2, 3, 1]))


# ---- affine and elastic


def test_matrices_are_scipys_rotations_after_stretch_and_shear(x64, rng):
    angles, factors, shears = rng.uniform(-2, 2, (5, 3)), rng.uniform(0.5, 2, (5, 3)), rng.uniform(-0.5, 0.5, (5, 3))
    expected = []
    for a, f, (x, y, z) in zip(angles, factors, shears, strict=True):
        shear = np.array([[1, x, 0], [0, 1, y], [z, 0, 1]])
        expected.append(Rotation.from_euler("xyz", a).as_matrix() @ np.diag(f) @ shear)
    np.testing.assert_allclose(jax.vmap(affine)(*map(jnp.asarray, (angles, factors, shears))), expected, atol=1e-12)


def test_a_half_turn_by_hand():
    """About x by 180°, then along y by one voxel: voxel (x, y, z) shows (x, n − 1 − y + 1, n − 1 − z)."""
    image = jnp.arange(27.0).reshape(1, 3, 3, 3, 1)
    matrix = affine(jnp.array([np.pi, 0, 0]), jnp.ones(3), jnp.zeros(3))[None]
    out, _ = warp(image, None, matrix, jnp.array([[0.0, 1, 0]]), jnp.zeros((1, 3, 3, 3, 3)))
    expected = np.zeros((3, 3, 3))
    expected[:, 1:] = np.arange(27.0).reshape(3, 3, 3)[:, :0:-1, ::-1]
    np.testing.assert_allclose(out[0, ..., 0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("shift", "image", "labels"), [(1.0, [2, 4, 0], [2, 4, 0]), (0.5, [1.5, 3, 2], [2, 4, 0]), (-0.25, [0.75, 1.75, 3.5], [1, 2, 4])]
)
def test_shifts_by_hand(shift, image, labels):
    values = jnp.array([1, 2, 4])
    moves = jnp.eye(3)[None], jnp.array([[shift, 0, 0]]), jnp.zeros((1, 3, 1, 1, 3))
    out, carried = warp(values.astype(jnp.float32).reshape(1, 3, 1, 1, 1), values.reshape(1, 3, 1, 1), *moves)
    assert out.ravel().tolist() == image and carried.ravel().tolist() == labels


def test_affine_resampling_is_scipys(x64, rng):
    image, labels = rng.random((2, 9, 12, 10, 2)), rng.integers(0, 5, (2, 9, 12, 10))
    matrix, shift = np.eye(3) + rng.normal(0, 0.2, (2, 3, 3)), rng.normal(0, 2, (2, 3))
    out, carried = warp(*map(jnp.asarray, (image, labels, matrix, shift)), jnp.zeros((2, 9, 12, 10, 3)))
    centre = (np.array([9, 12, 10]) - 1) / 2
    for i in range(2):
        offset = centre + shift[i] - matrix[i] @ centre
        transform = partial(ndimage.affine_transform, matrix=matrix[i], offset=offset, mode="grid-constant")
        for c in range(2):
            np.testing.assert_allclose(out[i, ..., c], transform(image[i, ..., c], order=1), atol=1e-10)
        np.testing.assert_array_equal(carried[i], transform(labels[i], order=0))


def test_bent_resampling_is_scipys(x64, rng):
    image, labels = rng.random((1, 9, 12, 10, 1)), rng.integers(0, 5, (1, 9, 12, 10))
    matrix, shift, bend = np.eye(3) + rng.normal(0, 0.2, (3, 3)), rng.normal(0, 2, 3), rng.normal(0, 1.5, (9, 12, 10, 3))
    out, carried = warp(jnp.asarray(image), jnp.asarray(labels), *(jnp.asarray(a[None]) for a in (matrix, shift, bend)))
    centre = (np.array([9, 12, 10]) - 1) / 2
    places = np.moveaxis((np.moveaxis(np.indices((9, 12, 10)), 0, -1) + bend - centre) @ matrix.T + centre + shift, -1, 0)
    np.testing.assert_allclose(out[0, ..., 0], ndimage.map_coordinates(image[0, ..., 0], places, order=1, mode="grid-constant"), atol=1e-10)
    np.testing.assert_array_equal(carried[0], ndimage.map_coordinates(labels[0], places, order=0, mode="grid-constant"))


@pytest.mark.parametrize("size", [(8, 9, 7), (96, 5, 6)])
def test_nothing_changes_where_nothing_happens_to_the_bit(rng, size):
    image, labels = jnp.asarray(rng.random((2, *size, 1), np.float32)), jnp.asarray(rng.integers(0, 200, (2, *size)), jnp.uint8)
    out, carried = randomly(jax.random.key(0), jnp.array([False, True]), image, labels, (20, 0.2, 0.1, 3), 6.0, 2.0)
    np.testing.assert_array_equal(out[0], image[0])
    np.testing.assert_array_equal(carried[0], labels[0])
    assert not np.array_equal(out[1], image[1]) and not np.array_equal(carried[1], labels[1]) and carried.dtype == labels.dtype
    out, carried = randomly(jax.random.key(0), jnp.array([True, True]), image, labels, (0, 0, 0, 0), 6.0, 0.0)
    np.testing.assert_array_equal(out, image)
    np.testing.assert_array_equal(carried, labels)


def test_limits_are_for_each_axis():

    def draw(*limits):
        return jax.vmap(lambda key: random_affine(key, jnp.bool_(True), *limits))(jax.random.split(jax.random.key(0), 500))

    none = (0, 0, 0)
    matrix, shift = draw((0, 30, 0), none, none, (1, 0, 3))
    degrees = Rotation.from_matrix(np.asarray(matrix)).as_euler("xyz", degrees=True)
    assert 29 < np.abs(degrees[:, 1]).max() <= 30 and np.abs(degrees[:, [0, 2]]).max() < 1e-3 and abs(degrees[:, 1].mean()) < 3
    np.testing.assert_allclose(np.abs(shift).max(0), [1, 0, 3], atol=0.02)
    matrix, _ = draw(none, (1.0, 0, 0.1), none, none)
    factors = np.diagonal(matrix, axis1=1, axis2=2)
    np.testing.assert_allclose(factors.max(0), [2, 1, 1.1], atol=0.02)
    np.testing.assert_allclose(factors.min(0), [0.5, 1, 1 / 1.1], atol=0.02)
    assert abs(np.median(factors[:, 0]) - 1) < 0.1
    matrix, _ = draw(none, none, (0.2, 0, 0), none)
    np.testing.assert_allclose(np.abs(np.asarray(matrix) - np.eye(3)).max(0), [[0, 0.2, 0], [0, 0, 0], [0, 0, 0]], atol=0.01)


@pytest.mark.parametrize("limits", [(10, 0.1, 0.05, 3), (30, 0.3, 0.2, 0), (170, 0, 0, 1), (0, 0, 0, 0)])
def test_nothing_comes_from_farther_than_the_reach_and_from_nearly_as_far_something_does(limits):
    crop, most = (6, 9, 12), 2.0
    limits = [(limit,) * 3 for limit in limits]

    def beyond(key):
        turn, bend = jax.random.split(key)
        # The corners of the crop, pulled about as far as a bend can.
        pull = most * jnp.sign(jax.random.normal(bend, (3,)))
        at = coordinates(*random_affine(turn, jnp.bool_(True), *limits), jnp.broadcast_to(pull, (*crop, 3)))
        return jnp.maximum(-at.min((0, 1, 2)), at.max((0, 1, 2)) - (jnp.array(crop) - 1))

    farthest = np.asarray(jax.jit(jax.vmap(beyond))(jax.random.split(jax.random.key(0), 4000))).max(0)
    bound = np.array(reach(crop, *limits, most))
    assert (farthest <= bound).all() and (farthest > 0.6 * bound - 1).all()


def test_labels_are_never_mixed_and_stay_on_their_image(rng):
    """An image that is a label's indicator: above 7/8 the nearest voxel has that label, below 1/8 it has not."""
    labels = ndimage.zoom(rng.integers(0, 3, (1, 4, 4, 4)) * 7, (1, 5, 5, 5), order=0)
    labels = jnp.asarray(labels, jnp.int32)
    image = (labels == 14)[..., None].astype(jnp.float32)
    out, carried = randomly(jax.random.key(2), jnp.ones(1, bool), image, labels, (15, 0.1, 0.1, 2), 8.0, 3.0)
    out, carried = np.asarray(out)[..., 0], np.asarray(carried)
    assert set(np.unique(carried)) <= {0, 7, 14} and not np.array_equal(carried, labels)
    inside, outside = out > 0.875 + 1e-5, out < 0.125 - 1e-5
    assert (carried[inside] == 14).all() and (carried[outside] != 14).all()
    assert inside.mean() > 0.1 and (inside | outside).mean() > 0.7
    assert ((out > 0.5) == (carried == 14)).mean() > 0.97


def folds(bend):
    """Whether a field [b x y z 3] of displacements turns space inside out anywhere, by differences of neighbours."""
    at = np.asarray(bend, np.float64) + np.moveaxis(np.indices(bend.shape[1:4]), 0, -1)
    steps = [np.diff(at, axis=k + 1)[:, : -1 if k else None, : None if k == 1 else -1, : None if k == 2 else -1] for k in range(3)]
    return bool((np.linalg.det(np.stack(steps, -1)) <= 0).any())


def test_up_to_four_tenths_of_the_nodes_distance_nothing_folds():
    one = jax.vmap(lambda key: random_displacement(key, jnp.bool_(True), jnp.zeros((24, 24, 24, 1)), [(6.0, 1.0)]))
    bend = jax.jit(one)(jax.random.split(jax.random.key(0), 30))
    assert not folds(bend * 0.4 * 6) and folds(bend * 1.2 * 6)
    assert np.abs(bend).max() < 1


# ---- field of view


def test_what_is_cut_is_background_in_image_and_labels():
    n, b = 16, 200
    ones = jnp.ones((n, n, n, 1)), jnp.ones((n, n, n), jnp.uint8)
    image, labels = jax.jit(jax.vmap(lambda key: cut_field_of_view(key, *ones, 0.5)))(jax.random.split(jax.random.key(0), b))
    image, labels = np.asarray(image)[..., 0], np.asarray(labels)
    np.testing.assert_array_equal(image, labels)
    assert set(np.unique(image)) == {0, 1} and labels.dtype == np.uint8
    depths = []
    for axis in range(3):
        line = image.max(tuple(1 + k for k in range(3) if k != axis))  # [b n]: which planes are left
        depths += [np.argmax(line, axis=1), np.argmax(line[:, ::-1], axis=1)]
    depths = np.stack(depths, axis=1)
    np.testing.assert_array_equal(image.sum((1, 2, 3)), np.prod(n - depths[:, ::2] - depths[:, 1::2], axis=1))  # a box
    assert depths.max() == 8 and (depths.max(0) >= 7).all()
    often = (depths > 0).mean(0)  # 1/6 + 5/6 · 1/4 = 0.375, less what is below half a voxel
    assert (often > 0.2).all() and (often < 0.5).all() and len(np.unique(depths, axis=0)) > 150


def test_a_cut_of_nothing_is_the_identity(rng):
    image = jnp.asarray(rng.random((4, 5, 6, 2), np.float32))
    out, none = jax.jit(cut_field_of_view, static_argnums=3)(jax.random.key(0), image, None, 0.0)
    assert none is None
    np.testing.assert_array_equal(out, image)


def test_displacements_of_two_scales_do_not_fold_within_the_bound():
    """The worst that may be drawn: limits that add up to 0.4 of their nodes' distances."""
    like, two = jnp.zeros((40, 40, 40, 1)), scales(8.0, 8 * 0.4 / 1.5, 2)
    assert two == [(8.0, pytest.approx(2.133, abs=1e-3)), (4.0, pytest.approx(0.533, abs=1e-3))]
    least = []
    for key in jax.random.split(jax.random.key(0), 10):
        bend = random_displacement(key, jnp.array(True), like, two)
        jacobian = np.stack([np.stack(np.gradient(np.asarray(bend)[..., i]), -1) for i in range(3)], -2) + np.eye(3)
        least.append(np.linalg.det(jacobian).min())
    assert min(least) > 0
    rest = np.abs(bend - random_displacement(key, jnp.array(True), like, two[:1]))
    assert 0.1 < rest.max() < 0.533
