"""Building blocks of augmentation: random arrays, linear maps along axes, and smooth random fields."""

from collections.abc import Callable, Sequence
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float


def random_array(draw: Callable[..., jax.Array], key: jax.Array, shape: Sequence[int], dtype: DTypeLike, *limits: float | int) -> jax.Array:
    """`draw(key, shape, dtype, *limits)`, drawn flat: with more axes XLA takes up to ten times as long to compile."""
    return draw(key, (prod(shape),), dtype, *limits).reshape(shape)


def along_axes(
    volume: Float[jax.Array, "x y z c"], matrices: tuple[Float[jax.Array, "i x"], Float[jax.Array, "j y"], Float[jax.Array, "k z"]]
) -> Float[jax.Array, "i j k c"]:
    """The volume times a matrix along each axis."""
    for matrix in matrices:
        # The first axis is contracted and its result comes last, so that after three products the axes are in order without a transpose.
        # By default accelerators multiply float32 with 10 bits: too few for coordinates.
        volume = jnp.einsum("x...,ix->...i", volume, matrix, precision="highest")
    return jnp.moveaxis(volume, 0, -1)


def smooth_noise(
    key: jax.Array, like: Float[jax.Array, "x y z _"], nodes: float | int, channels: int
) -> Float[jax.Array, "x y z {channels}"]:
    """Random fields within ±1 on the voxels of `like`: cubic B-splines of uniform coefficients, one every `nodes` voxels. Their standard
    deviation is about 0.2, since a spline is a mean over 4³ coefficients."""
    x, y, z = (jnp.asarray(bspline(n, nodes), like.dtype) for n in like.shape[:3])
    coefficients = random_array(jax.random.uniform, key, (x.shape[1], y.shape[1], z.shape[1], channels), like.dtype, -1, 1)
    return along_axes(coefficients, (x, y, z))


def bspline(n: int, nodes: float | int) -> Float[np.ndarray, "{n} g"]:
    """The matrix from coefficients of a cubic B-spline, one every `nodes` voxels, to n voxels. Rows sum to 1."""
    at = np.arange(n) / nodes
    first = np.floor(at).astype(int)
    t = at - first
    weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    basis = np.zeros((n, first[-1] + 4))
    for i, weight in enumerate(weights):
        basis[np.arange(n), first + i] = weight
    return basis
