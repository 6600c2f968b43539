"""UNETR's decoder (Hatamizadeh et al. 2022; the paper, section III-B), from a ViT's maps and the image to a map at full resolution.

With features (3, 6, 9), 0-based, it is MONAI's network; the paper's code uses (2, 5, 8), which are z3, z6 and z9 of the UNETR paper.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from brainseg_jax.models.blocks import ResBlock, UpBlock
from brainseg_jax.models.conv import UpConv


class Raise(nn.Module):
    """Upsampling of a ViT's hidden map: a transposed convolution, then `steps` more with a residual block each."""

    features: int
    steps: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b x y z d"]) -> Float[jax.Array, "b x2 y2 z2 c"]:
        x = UpConv(self.features, self.dtype, name="transp_conv_init")(x)
        for i in range(self.steps):
            x = UpConv(self.features, self.dtype, name=f"blocks_{i}_transp_conv")(x)
            x = ResBlock(self.features, self.dtype, name=f"blocks_{i}_conv_block")(x)
        return x


class UNETR(nn.Module):
    """Decoder: `(image [b x y z c], four maps [b x/16 y/16 z/16 d])` to [b x y z width]. `width` is MONAI's feature_size."""

    width: int = 16
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[jax.Array, "b x y z c"], features: tuple[Float[jax.Array, "b x2 y2 z2 d"], ...], train: bool = False
    ) -> Float[jax.Array, "b x y z f"]:
        res, up, raised = (nn.remat(m) if self.remat else m for m in (ResBlock, UpBlock, Raise))
        *early, last = features
        f = self.width
        skips = [res(f, self.dtype, name="encoder1")(image)]
        for i, hidden in enumerate(early):
            skips.append(raised(f * 2 ** (i + 1), 2 - i, self.dtype, name=f"encoder{i + 2}")(hidden))
        x = last
        for i in (3, 2, 1, 0):
            x = up(f * 2**i, self.dtype, name=f"decoder{i + 2}")(x, skips[i])
        return x
