"""Swin UNETR's decoder (Hatamizadeh et al. 2022), from five maps of a Swin transformer and the image to a map at full resolution.

It is MONAI's in values and names; half of the network's parameters are in one block, encoder10.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from brainseg_jax.models.blocks import ResBlock, UpBlock


class SwinUNETR(nn.Module):
    """Decoder: `(image [b x y z c], five maps from 1/2 to 1/32)` to [b x y z width]. `width` is the encoder's (MONAI's feature_size)."""

    width: int = 48
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[jax.Array, "b x y z c"], features: tuple[Float[jax.Array, "b _ _ _ _"], ...], train: bool = False
    ) -> Float[jax.Array, "b x y z f"]:
        res, up = (nn.remat(m) if self.remat else m for m in (ResBlock, UpBlock))
        f = self.width
        h0, h1, h2, h3, h4 = features
        skips = [
            res(f, self.dtype, name="encoder1")(image),
            res(f, self.dtype, name="encoder2")(h0),
            res(2 * f, self.dtype, name="encoder3")(h1),
            res(4 * f, self.dtype, name="encoder4")(h2),
            h3,  # unchanged: MONAI's numbering jumps from encoder4 to encoder10
        ]
        x = res(16 * f, self.dtype, name="encoder10")(h4)
        for i, channels in ((5, 8 * f), (4, 4 * f), (3, 2 * f), (2, f), (1, f)):
            x = up(channels, self.dtype, name=f"decoder{i}")(x, skips[i - 1])
        return x
