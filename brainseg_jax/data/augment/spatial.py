"""Spatial augmentation of image and labels: flips, affine and elastic deformation in one resampling, a smaller field of view.

Images are interpolated linearly and labels by nearest neighbour, so that no new labels appear. Voxels from outside the volume are 0, in
labels the background.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Bool, Float, Integer, Shaped

from brainseg_jax.core.errors import InputError
from brainseg_jax.data.augment.random_fields import random_array, smooth_noise

Image = Float[jax.Array, "x y z c"]
Labels = Integer[jax.Array, "x y z"] | None
Place = Integer[jax.Array, "3"] | None  # the first voxel of a crop in its patch; None: the patch is the crop
Vector = Float[jax.Array, "3"]
Limits = Sequence[float | int]  # one for each axis


def flip(image: Image, labels: Labels, axis: int, orientation: str, swap: Integer[np.ndarray, "k"] | None) -> tuple[Image, Labels]:
    """Image and labels flipped along a spatial axis, 0 to 2, of arrays whose axes point as in "RAS".

    Along the left–right axis each class becomes its partner on the other side, `swap[class]`: a flipped left hippocampus is a right one.
    Raises InputError for labels without `swap`, or partners that are not mutual. Along other axes classes do not change.
    """
    image = jnp.flip(image, axis)
    if labels is None:
        return image, None
    labels = jnp.flip(labels, axis)
    if orientation[axis] not in "LR":
        return image, labels
    if swap is None:
        raise InputError("labels cannot be mirrored without their left/right partners; set augment.mirror.sides=0 or give a label table")
    if not np.array_equal(swap[swap], np.arange(len(swap))):
        raise InputError(f"left/right partners {swap.tolist()} are not mutual; correct the label table")
    return image, jnp.asarray(swap, labels.dtype)[labels]


def affine(angles: Vector, factors: Vector, shears: Vector) -> Float[jax.Array, "3 3"]:
    """The matrix that shears (each axis along the next, cyclic, in voxels per voxel), scales, then rotates (radians about x, y, then z)."""
    eye = jnp.eye(3, dtype=angles.dtype)
    matrix = factors[:, None] * (eye + shears[:, None] * jnp.roll(eye, 1, axis=1))
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        cos, sin = jnp.cos(angles[axis]), jnp.sin(angles[axis])
        matrix = matrix.at[i].set(cos * matrix[i] - sin * matrix[j]).at[j].set(sin * matrix[i] + cos * matrix[j])
    return matrix


def random_affine(
    key: jax.Array, happens: Bool[jax.Array, ""], rotation: Limits, scaling: Limits, shear: Limits, translation: Limits
) -> tuple[Float[jax.Array, "3 3"], Vector]:
    """A random matrix and shift (voxels), uniform within ± each axis' limit; the identity unless `happens`.

    rotation: degrees about each axis. scaling: factors from 1 / (1 + limit) to 1 + limit, uniform in the logarithm. shear: voxels a voxel.
    """
    limits = np.array([np.radians(rotation), np.log1p(scaling), shear, translation], np.float32)
    draws = random_array(jax.random.uniform, key, (4, 3), jnp.float32, -1, 1) * limits * happens
    return affine(draws[0], jnp.exp(draws[1]), draws[2]), draws[3]


def random_displacement(
    key: jax.Array, happens: Bool[jax.Array, ""], like: Image, scales: Sequence[tuple[float, float]]
) -> Float[jax.Array, "x y z 3"]:
    """Smooth random displacements (voxels) along each axis, the sum over `scales` of (distance of nodes, limit); 0 unless `happens`.

    They do not fold if the limits, each divided by its nodes' distance, add up to 0.4 at most: a cubic B-spline with coefficients below
    1 / 2.48 of its nodes' distance is one to one (Choi and Lee 2000), since no derivative reaches 1, and derivatives add up.
    """
    keys = [key, *(jax.random.fold_in(key, i) for i in range(1, len(scales)))]
    return sum(smooth_noise(k, like, nodes, 3) * (limit * happens) for k, (nodes, limit) in zip(keys, scales, strict=True))


def scales(nodes: float, limit: float, octaves: int) -> list[tuple[float, float]]:
    """(Distance of nodes, limit) for each octave: half the distance and a quarter of the limit of the one before."""
    return [(nodes / 2**i, limit / 4**i) for i in range(octaves)]


def reach(crop: Sequence[int], rotation: Limits, scaling: Limits, shear: Limits, shift: Limits, bend: float) -> tuple[int, int, int]:
    """The margin in voxels around a crop, for each axis, from which content may come under any deformation within these limits.

    Limits as in `random_affine`; shift and bend in voxels.
    """
    half = (np.asarray(crop) - 1) / 2
    # An upper bound of the corner after `affine`, each term of its sums with its largest absolute value; rotation keeps its distance.
    corner = half + bend
    corner = (1 + np.asarray(scaling)) * (corner + np.asarray(shear) * np.roll(corner, -1))
    distance = np.linalg.norm(corner)
    for axis, degrees in enumerate(rotation):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        sin = np.sin(np.radians(min(degrees, 90)))
        corner[i], corner[j] = corner[i] + sin * corner[j], sin * corner[i] + corner[j]
    beyond = np.minimum(corner, distance if any(rotation) else np.inf) + np.asarray(shift) - half
    return tuple(int(n) for n in np.ceil(beyond))


def coordinates(matrix: Float[jax.Array, "3 3"], shift: Vector, bend: Float[jax.Array, "x y z 3"]) -> Float[jax.Array, "x y z 3"]:
    """The source coordinates of each voxel: displaced by `bend`, transformed by the matrix about the volume's centre, then shifted."""
    size = bend.shape[:3]
    # Sums of products instead of a matrix product, which has 10 bits on accelerators: the identity must be exact.
    centre = [(n - 1) / 2 for n in size]
    grid = jnp.meshgrid(*(jnp.arange(n, dtype=bend.dtype) - c for n, c in zip(size, centre, strict=True)), indexing="ij", sparse=True)
    at = [axis + bend[..., j] for j, axis in enumerate(grid)]

    def component(i: int) -> Float[jax.Array, "x y z"]:
        return sum(matrix[i, j] * at[j] for j in range(3)) + (shift[i] + centre[i])

    return jnp.stack([component(i) for i in range(3)], axis=-1)


def resample(
    image: Image, labels: Labels, at: Float[jax.Array, "i j k 3"]
) -> tuple[Float[jax.Array, "i j k c"], Integer[jax.Array, "i j k"] | None]:
    """Image and labels at coordinates in voxels, linear and nearest; 0 outside, to which an image falls off within one voxel."""

    def take(volume: jax.Array, order: int) -> jax.Array:
        return map_coordinates(volume, [at[..., i] for i in range(3)], order, mode="constant", cval=0)

    channels = [take(image[..., c], 1) for c in range(image.shape[-1])]
    return jnp.stack(channels, axis=-1), None if labels is None else take(labels, 0)


def box(
    image: Shaped[jax.Array, "x y z c"], labels: Labels, place: Place, size: tuple[int, int, int]
) -> tuple[Shaped[jax.Array, "i j k c"], Integer[jax.Array, "i j k"] | None]:
    """The box of `size` voxels that begins at `place`; everything if `place` is None."""
    if place is None:
        return image, labels
    take = lambda volume, *rest: jax.lax.dynamic_slice(volume, (*place, *(0 for _ in rest)), (*size, *rest))  # noqa: E731
    return take(image, image.shape[-1]), None if labels is None else take(labels)


def cut_field_of_view(key: jax.Array, image: Image, labels: Labels, share: float) -> tuple[Image, Labels]:
    """Image and labels in a smaller field of view: slabs of up to `share` of an axis become 0 and background, at one random side and with
    chance 1/4 at each other side."""
    side_key, more_key, depth_key = jax.random.split(key, 3)
    sides = (jax.random.randint(side_key, (), 0, 6) == jnp.arange(6)) | jax.random.bernoulli(more_key, 0.25, (6,))
    depths = (sides * jax.random.uniform(depth_key, (6,), maxval=share)).reshape(3, 2)
    inside = jnp.ones((1, 1, 1), bool)
    for axis, n in enumerate(image.shape[:3]):
        low, high = depths[axis, 0] * n, (1 - depths[axis, 1]) * n
        centre = jnp.arange(n) + 0.5
        inside &= jnp.expand_dims((low < centre) & (centre < high), [other for other in range(3) if other != axis])
    return image * inside[..., None], None if labels is None else labels * inside
