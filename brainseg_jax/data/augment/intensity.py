"""What changes an image's intensities and leaves anatomy and labels alone: contrast, receive bias, blur, noise, thick slices.

All but `intensity` take and give values of one sample in [0, 1], clipped where need be, as standardisation does with every scan.
How much is drawn for every channel anew: images of one head come from sequences of their own.
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

RISES = 5  # of a random curve, whose polynomial degree this is


def intensity(
    key: jax.Array, images: Float[jax.Array, "b x y z c"], scale: float, shift: float, chance: float
) -> Float[jax.Array, "b x y z c"]:
    """Of a batch, each with its own `chance` per sample: values times 1 + U(±scale), then plus U(±shift) (as MONAI's two transforms do)."""
    b, keys = len(images), jax.random.split(key, 4)

    def draw(which: jax.Array, amount: jax.Array, limit: float) -> jax.Array:
        happens = jax.random.bernoulli(which, chance, (b, 1, 1, 1, 1))
        return jnp.where(happens, jax.random.uniform(amount, (b, 1, 1, 1, images.shape[-1]), minval=-limit, maxval=limit), 0.0)

    return images * (1 + draw(keys[0], keys[1], scale)) + draw(keys[2], keys[3], shift)


def gamma(key: jax.Array, image: Image, limit: float) -> Image:
    """Values to a power from 1 / (1 + limit) to 1 + limit, evenly in the logarithm."""
    return image ** jnp.exp(_uniform(key, image, -1, 1) * np.log1p(limit))


def curve(key: jax.Array, image: Image, limit: float) -> Image:
    """Values along a random smooth curve that rises from 0 to 1, each part of it by 1 ± limit times as much as the straight line.

    limit: at most 1.
    """
    return along_curve(image, 1 + limit * random_array(jax.random.uniform, key, (RISES, image.shape[-1]), image.dtype, -1, 1))


def along_curve(image: Image, rises: Float[jax.Array, "k c"]) -> Image:
    """Values along the Bernstein polynomial whose coefficients start at 0, rise in proportion to `rises` (≥ 0) and end at 1."""
    k = len(rises)
    heights = jnp.cumsum(rises, axis=0) / jnp.sum(rises, axis=0, keepdims=True)
    # Only what differs from the straight line is added: with equal rises that is exactly nothing.
    bent = (heights[:-1] - jnp.arange(1, k, dtype=image.dtype)[:, None] / k)[:, None, None, None]
    return jnp.clip(image + sum(bent[i - 1] * (comb(k, i) * image**i * (1 - image) ** (k - i)) for i in range(1, k)), 0, 1)


def bias(key: jax.Array, image: Image, limit: float, nodes: float) -> Image:
    """Values times a smooth field from exp(−limit) to exp(limit), the exponent of a cubic spline with a node every `nodes` voxels."""
    return jnp.clip(image * jnp.exp(limit * smooth_noise(key, image, nodes, image.shape[-1])), 0, 1)


def blur(key: jax.Array, image: Image, limit: float) -> Image:
    """Gaussian blur, along each axis with its own standard deviation up to `limit` voxels."""
    sigmas = random_array(jax.random.uniform, key, (image.shape[-1], 3), image.dtype, 0, limit)
    return each_along_axes(image, [tuple(gaussian(n, s[i]) for i, n in enumerate(image.shape[:3])) for s in sigmas])


def each_along_axes(image: Image, matrices: Sequence[tuple[jax.Array, ...]]) -> Image:
    """Each channel times its own matrix along each axis."""
    return jnp.concatenate([along_axes(image[..., c : c + 1], of) for c, of in enumerate(matrices)], axis=-1)


def gaussian(n: int, sigma: Number) -> Float[jax.Array, "{n} {n}"]:
    """The matrix that replaces each voxel by the mean of all, weighted by a Gaussian; at the ends by that of those there are.

    Below a fiftieth of a voxel the identity, exactly.
    """
    at = jnp.arange(n, dtype=sigma.dtype)
    weights = jnp.exp(-(((at[:, None] - at[None]) / jnp.maximum(sigma, 0.02)) ** 2) / 2)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def gaussian_noise(key: jax.Array, image: Image, limit: float) -> Image:
    """Values plus normal noise with a standard deviation up to `limit`."""
    amount, noise = jax.random.split(key)
    return jnp.clip(image + _uniform(amount, image, 0, limit) * random_array(jax.random.normal, noise, image.shape, image.dtype), 0, 1)


def rician_noise(key: jax.Array, image: Image, limit: float) -> Image:
    """The magnitude of values plus complex normal noise, each part with a standard deviation up to `limit`: what a scanner delivers."""
    amount, noise = jax.random.split(key)
    sigma = _uniform(amount, image, 0, limit)
    real, imaginary = (sigma * random_array(jax.random.normal, part, image.shape, image.dtype) for part in jax.random.split(noise))
    return jnp.clip(jnp.hypot(image + real, imaginary), 0, 1)


NOISES = {"gaussian": gaussian_noise, "rician": rician_noise}


def low_resolution(key: jax.Array, image: Image, limit: float) -> Image:
    """What thicker voxels leave, up to `limit` of ours, interpolated back: half of the time thick slices along one axis, else all three."""
    c, keys = image.shape[-1], jax.random.split(key, 4)
    thick = (jax.random.randint(keys[0], (c, 1), 0, 3) == jnp.arange(3)[None]) | jax.random.bernoulli(keys[1], 0.5, (c, 1))
    thickness = jnp.where(thick, random_array(jax.random.uniform, keys[2], (c, 3), image.dtype, 1, limit), 1)
    first = random_array(jax.random.uniform, keys[3], (c, 3), image.dtype, -0.5, 0.5) * (thickness - 1)
    sizes = list(enumerate(image.shape[:3]))
    return each_along_axes(image, [tuple(slices(n, t[i], f[i]) for i, n in sizes) for t, f in zip(thickness, first, strict=True)])


def slices(n: int, thickness: Number, first: Number) -> Float[jax.Array, "{n} {n}"]:
    """The matrix that makes slices of n voxels and interpolates them linearly back to n; beyond the outermost centres their values go on.

    A slice is the mean over its `thickness` (≥ 1), at the ends of what there is of it. The first is centred at `first`, at most
    (thickness − 1) / 2 from 0, the others one beside the other.
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
