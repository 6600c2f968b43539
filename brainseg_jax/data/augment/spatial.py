"""What moves or removes voxels of a sample, image and labels alike: mirrors, affine and elastic deformation in one resampling, cuts.

Images are interpolated linearly, labels take the nearest voxel of the same place, so no label appears that was not there. What comes from
outside the volume is 0, in labels the background.
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
Place = Integer[jax.Array, "3"] | None  # where in a larger box a crop begins; None: it is the box
Vector = Float[jax.Array, "3"]
Limits = Sequence[float | int]  # one for each axis


def flip(image: Image, labels: Labels, axis: int, orientation: str, swap: Integer[np.ndarray, "k"] | None) -> tuple[Image, Labels]:
    """Mirrored along a spatial axis, 0 to 2, of arrays whose axes point as in "RAS".

    Along the axis from left to right each class becomes its partner on the other side, `swap[class]`: a mirrored left hippocampus is a
    right one. InputError if there are labels and no `swap` then, or partners are not mutual. Along other axes classes stay what they are.
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
    """The matrix that shears (each axis by so much per voxel of the next, cyclic), stretches, then turns (radians about x, y, then z)."""
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
    """A matrix and a shift (voxels), the identity unless it happens; each draw uniform within ± its axis' limit.

    rotation: degrees about each axis. scaling: factors from 1 / (1 + limit) to 1 + limit, evenly in the logarithm. shear: voxels per voxel.
    """
    limits = np.array([np.radians(rotation), np.log1p(scaling), shear, translation], np.float32)
    draws = random_array(jax.random.uniform, key, (4, 3), jnp.float32, -1, 1) * limits * happens
    return affine(draws[0], jnp.exp(draws[1]), draws[2]), draws[3]


def random_displacement(
    key: jax.Array, happens: Bool[jax.Array, ""], like: Image, scales: Sequence[tuple[float, float]]
) -> Float[jax.Array, "x y z 3"]:
    """Smooth displacements (voxels) along each axis, 0 unless it happens: the sum over `scales` of (distance of nodes, limit).

    They never fold while the limits, each as a share of its nodes' distance, add up to 0.4 or less: a cubic B-spline whose coefficients
    stay below 1 / 2.48 of its nodes' distance is one to one (Choi and Lee 2000) since no derivative reaches 1, and derivatives add up.
    """
    keys = [key, *(jax.random.fold_in(key, i) for i in range(1, len(scales)))]
    return sum(smooth_noise(k, like, nodes, 3) * (limit * happens) for k, (nodes, limit) in zip(keys, scales, strict=True))


def scales(nodes: float, limit: float, octaves: int) -> list[tuple[float, float]]:
    """(Distance of nodes, limit) of so many scales: each has half the distance and a quarter of the limit of the one before."""
    return [(nodes / 2**i, limit / 4**i) for i in range(octaves)]


def reach(crop: Sequence[int], rotation: Limits, scaling: Limits, shear: Limits, shift: Limits, bend: float) -> tuple[int, int, int]:
    """Voxels beyond a crop, at each end of each axis, that content may come from under any deformation within these limits.

    Limits as in `random_affine`; shift and bend in voxels.
    """
    half = (np.asarray(crop) - 1) / 2
    # The corner that `affine` takes farthest, each term of its sums with its largest absolute value; turning keeps its distance.
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
    """Where each voxel's content comes from: displaced by `bend`, then by the matrix about the volume's centre, then shifted."""
    size = bend.shape[:3]
    # Sums of products, not a matrix product: on accelerators that has 10 bits, and a voxel that stays must stay exactly.
    centre = [(n - 1) / 2 for n in size]
    grid = jnp.meshgrid(*(jnp.arange(n, dtype=bend.dtype) - c for n, c in zip(size, centre, strict=True)), indexing="ij", sparse=True)
    at = [axis + bend[..., j] for j, axis in enumerate(grid)]

    def component(i: int) -> Float[jax.Array, "x y z"]:
        return sum(matrix[i, j] * at[j] for j in range(3)) + (shift[i] + centre[i])

    return jnp.stack([component(i) for i in range(3)], axis=-1)


def resample(
    image: Image, labels: Labels, at: Float[jax.Array, "i j k 3"]
) -> tuple[Float[jax.Array, "i j k c"], Integer[jax.Array, "i j k"] | None]:
    """Image and labels at places given in voxels: linear and nearest; 0 outside, towards which an image falls off within one voxel."""

    def take(volume: jax.Array, order: int) -> jax.Array:
        return map_coordinates(volume, [at[..., i] for i in range(3)], order, mode="constant", cval=0)

    channels = [take(image[..., c], 1) for c in range(image.shape[-1])]
    return jnp.stack(channels, axis=-1), None if labels is None else take(labels, 0)


def box(
    image: Shaped[jax.Array, "x y z c"], labels: Labels, place: Place, size: tuple[int, int, int]
) -> tuple[Shaped[jax.Array, "i j k c"], Integer[jax.Array, "i j k"] | None]:
    """The box of so many voxels that begins at `place`; all, if that is None."""
    if place is None:
        return image, labels
    take = lambda volume, *rest: jax.lax.dynamic_slice(volume, (*place, *(0 for _ in rest)), (*size, *rest))  # noqa: E731
    return take(image, image.shape[-1]), None if labels is None else take(labels)


def cut_field_of_view(key: jax.Array, image: Image, labels: Labels, share: float) -> tuple[Image, Labels]:
    """A smaller field of view: slabs of up to `share` of an axis become 0, at one side that is drawn and with chance 1/4 at each other.

    Labels become background there, as they are outside of any scan: what was not measured cannot be known.
    """
    which, more, depth = jax.random.split(key, 3)
    chosen = (jax.random.randint(which, (), 0, 6) == jnp.arange(6)) | jax.random.bernoulli(more, 0.25, (6,))
    depths = (chosen * jax.random.uniform(depth, (6,), maxval=share)).reshape(3, 2)
    kept = jnp.ones((1, 1, 1), bool)
    for axis, n in enumerate(image.shape[:3]):
        low, high = depths[axis, 0] * n, (1 - depths[axis, 1]) * n
        centre = jnp.arange(n) + 0.5
        kept &= jnp.expand_dims((low < centre) & (centre < high), [other for other in range(3) if other != axis])
    return image * kept[..., None], None if labels is None else labels * kept
