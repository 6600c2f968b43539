"""The segmentation network, an encoder, a decoder and a head, e.g. UNETR and Swin UNETR."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from brainseg_jax.models.conv import he_normal
from brainseg_jax.models.layers import Linear


class Segmenter(nn.Module):
    """`image [b x y z c]` to logits [b x y z k], float32 (float64 for a network in float64).

    The head is a 1³ convolution with bias (MONAI's `out`). As it is linear, windows may be averaged before it.
    """

    encoder: nn.Module
    decoder: nn.Module
    classes: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.head = Linear(self.classes, self.dtype, kernel_init=he_normal)

    def __call__(self, image: Float[jax.Array, "b x y z c"], train: bool = False) -> Float[jax.Array, "b x y z k"]:
        logits = self.head(self.features(image, train))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def features(self, image: Float[jax.Array, "b x y z c"], train: bool = False) -> Float[jax.Array, "b x y z f"]:
        """The decoder's map, the input of the head."""
        return self.decoder(image, self.encoder(image, train), train)

    def before_head(
        self, image: Float[jax.Array, "b x y z c"], train: bool = False
    ) -> tuple[Float[jax.Array, "b x y z f"], dict[str, jax.Array]]:
        """The decoder's map and the head's parameters, for a loss that does not hold all logits."""
        features = self.features(image, train)
        if self.is_initializing():
            self.head(features)
        return features, dict(self.head.variables["params"])
