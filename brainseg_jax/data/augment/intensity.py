"""Intensity augmentation, which does not change labels: contrast, receive bias, blur, noise, thick slices.

All but `intensity` map one sample with values in [0, 1] to [0, 1], clipped if necessary, as standardised scans are. Strengths are drawn for
each channel, since images of one head are different sequences.
"""

from collections.abc import Sequence
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from brainseg_jax.data.augment.random_fields import along_axes, random_array, smooth_noise

Image = Float[jax.Array, "x y z c"]
Number = Float[jax.Array, ""]

RISES = 5  # number of rises of a random curve, its polynomial degree


def intensity(
    key: jax.Array, images: Float[jax.Array, "b x y z c"], scale: float, shift: float, chance: float
) -> Float[jax.Array, "b x y z c"]:
    """A batch with values times 1 + U(±scale), then plus U(±shift), each with its own `chance` per sample (MONAI's two transforms)."""
    b, keys = len(images), jax.random.split(key, 4)

    def draw(which: jax.Array, amount: jax.Array, limit: float) -> jax.Array:
        happens = jax.random.bernoulli(which, chance, (b, 1, 1, 1, 1))
        return jnp.where(happens, jax.random.uniform(amount, (b, 1, 1, 1, images.shape[-1]), minval=-limit, maxval=limit), 0.0)

    return images * (1 + draw(keys[0], keys[1], scale)) + draw(keys[2], keys[3], shift)


def gamma(key: jax.Array, image: Image, limit: float) -> Image:
    """Values to a power from 1 / (1 + limit) to 1 + limit, uniform in the logarithm."""
    return image ** jnp.exp(_uniform(key, image, -1, 1) * np.log1p(limit))


def curve(key: jax.Array, image: Image, limit: float) -> Image:
    """Values mapped by a random smooth curve that rises from 0 to 1, each part by 1 ± limit (at most 1) times the straight line's rise."""
    return along_curve(image, 1 + limit * random_array(jax.random.uniform, key, (RISES, image.shape[-1]), image.dtype, -1, 1))


def along_curve(image: Image, rises: Float[jax.Array, "k c"]) -> Image:
    """Values mapped by the Bernstein polynomial whose coefficients start at 0, rise in proportion to `rises` (≥ 0) and end at 1."""
    k = len(rises)
    heights = jnp.cumsum(rises, axis=0) / jnp.sum(rises, axis=0, keepdims=True)
    # Only the difference from the straight line is added: with equal rises exactly 0.
    offsets = (heights[:-1] - jnp.arange(1, k, dtype=image.dtype)[:, None] / k)[:, None, None, None]
    return jnp.clip(image + sum(offsets[i - 1] * (comb(k, i) * image**i * (1 - image) ** (k - i)) for i in range(1, k)), 0, 1)


def bias(key: jax.Array, image: Image, limit: float, nodes: float) -> Image:
    """Values times a smooth field from exp(−limit) to exp(limit), exp of a cubic spline with a node every `nodes` voxels."""
    return jnp.clip(image * jnp.exp(limit * smooth_noise(key, image, nodes, image.shape[-1])), 0, 1)


def blur(key: jax.Array, image: Image, limit: float) -> Image:
    """The image after a Gaussian blur, with a standard deviation of up to `limit` voxels for each axis."""
    sigmas = random_array(jax.random.uniform, key, (image.shape[-1], 3), image.dtype, 0, limit)
    return each_along_axes(image, [tuple(gaussian(n, s[i]) for i, n in enumerate(image.shape[:3])) for s in sigmas])


def each_along_axes(image: Image, matrices: Sequence[tuple[jax.Array, ...]]) -> Image:
    """Each channel times its own matrix along each axis."""
    return jnp.concatenate([along_axes(image[..., c : c + 1], per_axis) for c, per_axis in enumerate(matrices)], axis=-1)


def gaussian(n: int, sigma: Number) -> Float[jax.Array, "{n} {n}"]:
    """The matrix of a Gaussian blur along an axis, with weights normalised at the ends; for sigma below 1/50 voxel exactly the identity."""
    at = jnp.arange(n, dtype=sigma.dtype)
    weights = jnp.exp(-(((at[:, None] - at[None]) / jnp.maximum(sigma, 0.02)) ** 2) / 2)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def gaussian_noise(key: jax.Array, image: Image, limit: float) -> Image:
    """Values plus normal noise with a standard deviation up to `limit`."""
    amount, noise = jax.random.split(key)
    return jnp.clip(image + _uniform(amount, image, 0, limit) * random_array(jax.random.normal, noise, image.shape, image.dtype), 0, 1)


def rician_noise(key: jax.Array, image: Image, limit: float) -> Image:
    """The magnitude of values plus complex normal noise, each part with a standard deviation up to `limit`, as in MRI."""
    amount, noise = jax.random.split(key)
    sigma = _uniform(amount, image, 0, limit)
    real, imaginary = (sigma * random_array(jax.random.normal, part, image.shape, image.dtype) for part in jax.random.split(noise))
    return jnp.clip(jnp.hypot(image + real, imaginary), 0, 1)


NOISES = {"gaussian": gaussian_noise, "rician": rician_noise}


def low_resolution(key: jax.Array, image: Image, limit: float) -> Image:
    """The image at a lower resolution, up to `limit` voxels, interpolated back: with chance ½ along one axis, else along all."""
    c, keys = image.shape[-1], jax.random.split(key, 4)
    thick = (jax.random.randint(keys[0], (c, 1), 0, 3) == jnp.arange(3)[None]) | jax.random.bernoulli(keys[1], 0.5, (c, 1))
    thickness = jnp.where(thick, random_array(jax.random.uniform, keys[2], (c, 3), image.dtype, 1, limit), 1)
    first = random_array(jax.random.uniform, keys[3], (c, 3), image.dtype, -0.5, 0.5) * (thickness - 1)
    sizes = list(enumerate(image.shape[:3]))
    return each_along_axes(image, [tuple(slices(n, t[i], f[i]) for i, n in sizes) for t, f in zip(thickness, first, strict=True)])


def slices(n: int, thickness: Number, first: Number) -> Float[jax.Array, "{n} {n}"]:
    """The matrix that averages n voxels to slices and interpolates these linearly back to n voxels, constant beyond the outer centres.

    A slice is the mean over its `thickness` (≥ 1), at the ends over the part inside. Slices are contiguous; the first is centred at
    `first`, at most (thickness − 1) / 2 from 0.
    """
    at = jnp.arange(n, dtype=thickness.dtype)
    place = (at - first) / thickness
    before, last = jnp.floor(place), jnp.round((n - 1 - first) / thickness)

    def means(number: Float[jax.Array, "i"]) -> Float[jax.Array, "i k"]:
        centre = first + jnp.clip(number, 0, last) * thickness
        low, high = (centre - thickness / 2)[:, None], (centre + thickness / 2)[:, None]
        overlap = jnp.maximum(jnp.minimum(high, at[None] + 0.5) - jnp.maximum(low, at[None] - 0.5), 0)
        return overlap / jnp.sum(overlap, axis=1, keepdims=True)

    t = (place - before)[:, None]
    return (1 - t) * means(before) + t * means(before + 1)


def _uniform(key: jax.Array, image: Image, low: float | int, high: float | int) -> Float[jax.Array, "1 1 1 c"]:
    return random_array(jax.random.uniform, key, (1, 1, 1, image.shape[-1]), image.dtype, low, high)
