"""The convolutional blocks that UNETR and Swin UNETR share (Hatamizadeh et al. 2022): residual blocks with instance norm.

Leaves carry MONAI's names (conv1, conv2, conv3, transp_conv, conv_block). Of a convolution that is normalised and activated only the
result is kept for the backward pass: leaky ReLU can be inverted, so the normalised values are read off it (Rota Bulo et al. 2018). That is
one map per convolution where PyTorch keeps three.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from brainseg_jax.models.conv import Conv3, UpConv, he
from brainseg_jax.models.layers import Linear

Volume = Float[jax.Array, "b x y z c"]
PerChannel = Float[jax.Array, "b 1 1 1 c"]

EPS = 1e-5
SLOPE = 0.01


@jax.custom_vjp
def instance_norm(x: Volume) -> Volume:
    """Each channel of each sample to mean 0 and (biased) variance 1 over its voxels, in float32 at least; nothing is learned."""
    return _normalise(x)[0].astype(x.dtype)


@jax.custom_vjp
def activated_norm(x: Volume, shortcut: Volume | None = None) -> Volume:
    """leaky(norm(x) + shortcut), leaky ReLU with slope 0.01."""
    return _activated_norm_forward(x, shortcut)[0]


def _normalise(x: Volume) -> tuple[Volume, PerChannel]:
    """Normalised values in float32 at least, and what the centred ones were multiplied with."""
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


instance_norm.defvjp(_instance_norm_forward, _instance_norm_backward)
activated_norm.defvjp(_activated_norm_forward, _activated_norm_backward)


class ResBlock(nn.Module):
    """leaky(norm(conv(leaky(norm(conv(x))))) + x), with x through a normalised 1³ convolution where the channels change."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b x y z i"]) -> Float[jax.Array, "b x y z o"]:
        h = activated_norm(Conv3(self.features, self.dtype, name="conv1")(x))
        h = Conv3(self.features, self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = instance_norm(Linear(self.features, self.dtype, use_bias=False, kernel_init=he, name="conv3")(x))
        return activated_norm(h, x)


class UpBlock(nn.Module):
    """Doubles x's grid, joins the map from the other side of the U, and mixes the two."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b x y z i"], skip: Float[jax.Array, "b x2 y2 z2 o"]) -> Float[jax.Array, "b x2 y2 z2 o"]:
        x = UpConv(self.features, self.dtype, name="transp_conv")(x)
        # The barrier makes one map of it for both of its readers, where XLA would write it twice.
        both = jax.lax.optimization_barrier(jnp.concatenate([x, skip.astype(x.dtype)], axis=-1))
        return ResBlock(self.features, self.dtype, name="conv_block")(both)
