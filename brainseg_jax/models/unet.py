"""A residual U-Net, nnU-Net's ResEnc (Isensee et al. 2024): the baseline without attention and pretraining.

Encoder and decoder compute what `ResidualEncoderUNet` of the package dynamic-network-architectures does with BasicBlockD, kernels of 3,
strides of 2, instance norm and leaky ReLU of slope 0.01. Its convolutions have biases, which a following norm cancels; ours have them only
in transposed convolutions, which no norm follows: a converter would drop the others, and write zeros. Parameters have its names (stem,
conv1, conv2, skip, conv, norm), with lists as in stages_0/blocks_1.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from brainseg_jax.core.errors import InputError
from brainseg_jax.models.blocks import SLOPE, affine_norm
from brainseg_jax.models.conv import Conv3, UpConv, he_normal
from brainseg_jax.models.layers import Linear


class Norm(nn.Module):
    """leaky(scale · norm(x) + bias + shortcut), instance norm; without activation for slope 1. `zero`: initial scale 0 instead of 1."""

    slope: float = SLOPE
    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b x y z c"], shortcut: Float[jax.Array, "b x y z c"] | None = None) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros if self.zero else nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return affine_norm(self.slope, x, scale, bias, shortcut)


class ConvNorm(nn.Module):
    """leaky(norm(conv(x)) + shortcut), a 3³ convolution of stride 1 or 2."""

    features: int
    stride: int = 1
    zero: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b x y z i"], shortcut: Float[jax.Array, "b _ _ _ o"] | None = None
    ) -> Float[jax.Array, "b _ _ _ o"]:
        return Norm(zero=self.zero, name="norm")(Conv3(self.features, self.dtype, self.stride, name="conv")(x), shortcut)


class Projection(nn.Module):
    """A shortcut to another number of channels: a normalised 1³ convolution."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b x y z i"]) -> Float[jax.Array, "b x y z o"]:
        x = Linear(self.features, self.dtype, use_bias=False, kernel_init=he_normal, name="conv")(x)
        return Norm(slope=1.0, name="norm")(x)


class ResidualBlock(nn.Module):
    """leaky(norm(conv(leaky(norm(conv(x))))) + shortcut(x)), BasicBlockD, with the stride in the first convolution.

    The shortcut is a 2³ mean for stride 2, then a Projection if the channels change (ResNet-D, He et al. 2019). The last norm's initial
    scale is 0, so that a block is initially its shortcut (Goyal et al. 2017), as in nnU-Net.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b x y z i"]) -> Float[jax.Array, "b _ _ _ o"]:
        h = ConvNorm(self.features, self.stride, dtype=self.dtype, name="conv1")(x)
        if self.stride == 2:
            x = downsample(x)
        if x.shape[-1] != self.features:
            x = Projection(self.features, self.dtype, name="skip")(x)
        return ConvNorm(self.features, zero=True, dtype=self.dtype, name="conv2")(h, x)


def downsample(x: Float[jax.Array, "b x y z c"]) -> Float[jax.Array, "b x2 y2 z2 c"]:
    """The mean of every 2³ voxels, summed in float32 at least. Axes are even."""
    b, nx, ny, nz, c = x.shape
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.mean(wide.reshape(b, nx // 2, 2, ny // 2, 2, nz // 2, 2, c), axis=(2, 4, 6)).astype(x.dtype)


class Stage(nn.Module):
    """Residual blocks on one grid, the first one with the stride to it."""

    features: int
    blocks: int
    stride: int
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b x y z i"]) -> Float[jax.Array, "b _ _ _ o"]:
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        for i in range(self.blocks):
            x = block(self.features, 1 if i else self.stride, self.dtype, name=f"blocks_{i}")(x)
        return x


class ResEnc(nn.Module):
    """Encoder: `(image [b x y z c], train)` to one map a stage, at 1/1 with features[0] channels, at 1/2 with features[1], …

    A stem (convolution, norm, leaky ReLU), then blocks[s] residual blocks in stage s. Raises InputError for an image whose axes cannot be
    halved after each stage.
    """

    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6)
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[jax.Array, "b x y z c"], train: bool = False) -> tuple[Float[jax.Array, "b _ _ _ _"], ...]:
        multiple = 2 ** (len(self.features) - 1)
        size = image.shape[1:4]
        if any(n % multiple for n in size):
            usable = " x ".join(str(-(-n // multiple) * multiple) for n in size)
            given = " x ".join(map(str, size))
            raise InputError(
                f"an image of {given} voxels: this U-Net takes multiples of {multiple} on every axis; crop or pad it to {usable}"
            )
        stem = nn.remat(ConvNorm) if self.remat else ConvNorm
        x = stem(self.features[0], dtype=self.dtype, name="stem")(image)
        maps = []
        for s, (features, blocks) in enumerate(zip(self.features, self.blocks, strict=True)):
            x = Stage(features, blocks, 2 if s else 1, self.remat, self.dtype, name=f"stages_{s}")(x)
            maps.append(x)
        return tuple(maps)


class UpStage(nn.Module):
    """Upsampling by 2, concatenation of the encoder's map, and convolutions with as many channels as that map has."""

    convs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b x y z i"], skip: Float[jax.Array, "b x2 y2 z2 o"]) -> Float[jax.Array, "b x2 y2 z2 o"]:
        features = skip.shape[-1]
        x = UpConv(features, self.dtype, use_bias=True, name="transpconv")(x)
        x = jnp.concatenate([x, skip.astype(x.dtype)], axis=-1)
        for i in range(self.convs):
            x = ConvNorm(features, dtype=self.dtype, name=f"convs_{i}")(x)
        return x


class UNet(nn.Module):
    """Decoder: `(image, maps from fine to coarse)` to a map with the finest map's grid and channels; the image is not used.

    `convs`: numbers of convolutions in the stages, from the coarsest grid to the finest, one fewer than there are maps.
    """

    convs: tuple[int, ...] = (1, 1, 1, 1, 1)
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[jax.Array, "b x y z c"], features: tuple[Float[jax.Array, "b _ _ _ _"], ...], train: bool = False
    ) -> Float[jax.Array, "b x y z f"]:
        stage = nn.remat(UpStage) if self.remat else UpStage
        *skips, x = features
        for s, (convs, skip) in enumerate(zip(self.convs, reversed(skips), strict=True)):
            x = stage(convs, self.dtype, name=f"stages_{s}")(x, skip)
        return x
