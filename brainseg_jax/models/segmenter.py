"""An encoder and a decoder put together: from an image to logits. UNETR and Swin UNETR are two such pairs."""

import flax.linen as nn
import jax
from jaxtyping import Float


class Segmenter(nn.Module):
    """`image [b x y z c]` to logits [b x y z k], float32 (float64 for a network in float64)."""

    encoder: nn.Module
    decoder: nn.Module

    def __call__(self, image: Float[jax.Array, "b x y z c"], train: bool = False) -> Float[jax.Array, "b x y z k"]:
        return self.decoder(image, self.encoder(image, train), train)
