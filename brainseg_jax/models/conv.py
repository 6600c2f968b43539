"""All 3-D convolutions of the package, in a form that is fast on the platform: XLA's on a GPU, by planes on a CPU (`cpu_conv.py`).

The form depends on the platform that the program is lowered for, not on the machine it is lowered on.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from brainseg_jax.models.cpu_conv import (
    by_planes,
    image_gradient_by_planes,
    kernel_gradient_by_planes,
    strided_by_planes,
    strided_kernel_gradient_by_planes,
    up_gradient_by_rows,
)
from brainseg_jax.models.layers import shifted

he_normal = nn.initializers.he_normal()
Volume = Float[jax.Array, "b x y z i"]
Kernel = Float[jax.Array, "3 3 3 i o"]


@jax.custom_vjp
def conv3(x: Volume, kernel: Kernel) -> Float[jax.Array, "b x y z o"]:
    """Cross-correlation with a 3³ kernel, stride 1, zero padding of 1."""
    return jax.lax.platform_dependent(x, kernel, cpu=by_planes, default=_plain)


def _forward(x, kernel):
    return conv3(x, kernel), (x, kernel)


def _backward(saved, g):
    x, kernel = saved
    # For the image: a convolution with the flipped kernel, inputs and outputs exchanged.
    d_kernel = jax.lax.platform_dependent(x, g, cpu=kernel_gradient_by_planes, default=_kernel_gradient)
    return conv3(g, kernel[::-1, ::-1, ::-1].swapaxes(3, 4)), d_kernel


conv3.defvjp(_forward, _backward)


def _plain(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 3, ((1, 1),) * 3, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


def _kernel_gradient(x, g, stride=1):
    like = jnp.zeros((3, 3, 3, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.vjp(lambda kernel: _plain(x, kernel, stride), like)[1](g)[0]


@jax.custom_vjp
def conv3_strided(x: Volume, kernel: Kernel) -> Float[jax.Array, "b x2 y2 z2 o"]:
    """Cross-correlation with a 3³ kernel, stride 2, zero padding of 1: ⌈n/2⌉ voxels of n, centred on the first, the third, …"""
    return jax.lax.platform_dependent(x, kernel, cpu=strided_by_planes, default=partial(_plain, stride=2))


def _strided_forward(x, kernel):
    return conv3_strided(x, kernel), (x, kernel)


def _strided_backward(saved, g):
    x, kernel = saved
    forms = {"cpu": partial(image_gradient_by_planes, shape=x.shape), "default": partial(_image_gradient, shape=x.shape)}
    d_image = jax.lax.platform_dependent(g, kernel, **forms)
    return d_image, jax.lax.platform_dependent(x, g, cpu=strided_kernel_gradient_by_planes, default=_strided_kernel_gradient)


conv3_strided.defvjp(_strided_forward, _strided_backward)


def _image_gradient(g, kernel, shape):
    return jax.vjp(lambda x: _plain(x, kernel, 2), jnp.zeros(shape, g.dtype))[1](g)[0]


_strided_kernel_gradient = partial(_kernel_gradient, stride=2)


@jax.custom_vjp
def up_conv(x: Volume, kernel: Float[jax.Array, "i m"]) -> Float[jax.Array, "b x2 y2 z2 o"]:
    """Transposed convolution, kernel 2 and stride 2, as a matrix product with outputs in (x, y, z, o) order and depth-to-space."""
    return _up(x, kernel)


def _up(x, kernel):
    b, nx, ny, nz, _ = x.shape
    y = (x @ kernel).reshape(b, nx, ny, nz, 2, 2, 2, -1)
    return y.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, 2 * nx, 2 * ny, 2 * nz, -1)


def _up_backward(saved, g):
    return jax.lax.platform_dependent(*saved, g, cpu=up_gradient_by_rows, default=_up_gradient)


up_conv.defvjp(lambda x, kernel: (_up(x, kernel), (x, kernel)), _up_backward)


def _up_gradient(x, kernel, g):
    return jax.vjp(_up, x, kernel)[1](g)


class Conv3(nn.Module):
    """A 3³ convolution without bias, of stride 1 or 2: `kernel` [3 3 3 i o]."""

    features: int
    dtype: Any = jnp.float32
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b x y z i"]) -> Float[jax.Array, "b _ _ _ o"]:
        kernel = self.param("kernel", he_normal, (3, 3, 3, x.shape[-1], self.features))
        convolve = {1: conv3, 2: conv3_strided}[self.stride]
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype))


class UpConv(nn.Module):
    """Transposed convolution, kernel 2 and stride 2: `kernel` [i 8·o], outputs in (x, y, z, o) order, with `use_bias` a `bias` [o]."""

    features: int
    dtype: Any = jnp.float32
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b x y z i"]) -> Float[jax.Array, "b x2 y2 z2 o"]:
        kernel = self.param("kernel", he_normal, (x.shape[-1], 8 * self.features))
        y = up_conv(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            y = shifted(y, self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype))
        return y
