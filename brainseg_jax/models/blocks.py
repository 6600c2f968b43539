"""Residual convolutional blocks with instance norm of UNETR and Swin UNETR (Hatamizadeh et al. 2022), and the norms.

Parameters have MONAI's names (conv1, conv2, conv3, transp_conv, conv_block). A normalised and activated convolution saves only its output
for the backward pass: leaky ReLU is inverted for the normalised values (Rota Bulo et al. 2018). That is one map per convolution where
PyTorch saves three. A norm with learned scales cannot be inverted, as a scale may be 0, and saves two.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from brainseg_jax.models.conv import Conv3, UpConv, he_normal
from brainseg_jax.models.layers import Linear

Volume = Float[jax.Array, "b x y z c"]
PerChannel = Float[jax.Array, "b 1 1 1 c"]

EPS = 1e-5
SLOPE = 0.01


@jax.custom_vjp
def instance_norm(x: Volume) -> Volume:
    """Each channel of each sample with mean 0 and (biased) variance 1 over its voxels, in float32 at least; without parameters."""
    return _normalise(x)[0].astype(x.dtype)


@jax.custom_vjp
def activated_norm(x: Volume, shortcut: Volume | None = None) -> Volume:
    """leaky(norm(x) + shortcut), leaky ReLU with slope 0.01."""
    return _activated_norm_forward(x, shortcut)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def affine_norm(
    slope: float, x: Volume, scale: Float[jax.Array, "c"], bias: Float[jax.Array, "c"], shortcut: Volume | None = None
) -> Volume:
    """leaky(scale · norm(x) + bias + shortcut), leaky ReLU with `slope`; without activation for slope 1."""
    return _affine_norm_forward(slope, x, scale, bias, shortcut)[0]


def _normalise(x: Volume) -> tuple[Volume, PerChannel]:
    """Normalised values in float32 at least, and the scale of the centred values."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = x - _mean(x)
    scale = jax.lax.rsqrt(_mean(jnp.square(centred)) + EPS)
    return centred * scale, scale


def _mean(x: Volume) -> PerChannel:
    return jnp.mean(x, axis=(1, 2, 3), keepdims=True)


def _normalise_gradient(normalised: Volume, scale: PerChannel, g: Volume) -> Volume:
    g = g.astype(normalised.dtype)
    return scale * (g - _mean(g) - normalised * _mean(g * normalised))


def _instance_norm_forward(x):
    normalised, scale = _normalise(x)
    normalised = normalised.astype(x.dtype)
    return normalised, (normalised, scale)


def _instance_norm_backward(saved, g):
    normalised, scale = saved
    return (_normalise_gradient(normalised.astype(scale.dtype), scale, g).astype(g.dtype),)


def _activated_norm_forward(x, shortcut):
    normalised, scale = _normalise(x)
    out = nn.leaky_relu(normalised if shortcut is None else normalised + shortcut, SLOPE).astype(x.dtype)
    return out, (out, shortcut, scale)


def _activated_norm_backward(saved, g):
    out, shortcut, scale = saved
    wide = out.astype(scale.dtype)
    summed = jnp.where(out < 0, wide / SLOPE, wide)
    g = jnp.where(out < 0, SLOPE * g, g)
    normalised = summed if shortcut is None else summed - shortcut
    return _normalise_gradient(normalised, scale, g).astype(g.dtype), None if shortcut is None else g.astype(shortcut.dtype)


def _per_channel(vector: Float[jax.Array, "c"], like: Volume) -> Float[jax.Array, "1 1 1 1 c"]:
    return vector.astype(like.dtype).reshape(1, 1, 1, 1, -1)


def _affine_norm_forward(slope, x, scale, bias, shortcut):
    normalised, factor = _normalise(x)
    out = normalised * _per_channel(scale, normalised) + _per_channel(bias, normalised)
    if shortcut is not None:
        out = out + shortcut.astype(out.dtype)
    out = nn.leaky_relu(out, slope).astype(x.dtype)
    return out, (normalised.astype(x.dtype), out, shortcut, factor, scale, bias)


def _affine_norm_backward(slope, saved, g):
    normalised, out, shortcut, factor, scale, bias = saved
    dtype, normalised = g.dtype, normalised.astype(factor.dtype)
    g = g.astype(factor.dtype)
    if slope != 1:
        g = jnp.where(out < 0, slope * g, g)
    # Two means give the gradients of bias and scale, and the norm's projection of g.
    mean, along = _mean(g), _mean(g * normalised)
    voxels = g.size // (g.shape[0] * g.shape[-1])
    d_x = (factor * _per_channel(scale, factor) * (g - mean - normalised * along)).astype(dtype)
    total = lambda means, like: (voxels * jnp.sum(means, axis=(0, 1, 2, 3))).astype(like.dtype)  # noqa: E731
    return d_x, total(along, scale), total(mean, bias), None if shortcut is None else g.astype(shortcut.dtype)


instance_norm.defvjp(_instance_norm_forward, _instance_norm_backward)
activated_norm.defvjp(_activated_norm_forward, _activated_norm_backward)
affine_norm.defvjp(_affine_norm_forward, _affine_norm_backward)


class ResBlock(nn.Module):
    """leaky(norm(conv(leaky(norm(conv(x))))) + x), with a normalised 1³ convolution of x if the channels change."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b x y z i"]) -> Float[jax.Array, "b x y z o"]:
        h = activated_norm(Conv3(self.features, self.dtype, name="conv1")(x))
        h = Conv3(self.features, self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = instance_norm(Linear(self.features, self.dtype, use_bias=False, kernel_init=he_normal, name="conv3")(x))
        return activated_norm(h, x)


class UpBlock(nn.Module):
    """Upsampling by 2, concatenation of the skip connection, and a residual block."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b x y z i"], skip: Float[jax.Array, "b x2 y2 z2 o"]) -> Float[jax.Array, "b x2 y2 z2 o"]:
        x = UpConv(self.features, self.dtype, name="transp_conv")(x)
        # Without the barrier XLA writes the concatenation twice, for each of its readers.
        both = jax.lax.optimization_barrier(jnp.concatenate([x, skip.astype(x.dtype)], axis=-1))
        return ResBlock(self.features, self.dtype, name="conv_block")(both)
