"""Networks in Flax Linen. An encoder is a file here and a line in ENCODERS."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from brainseg_jax.models.vit import ViT


def vit(config: ConfigDict) -> ViT:
    """The 3-D ViT for the config's crops."""
    x, y, z = (n // config.vit.patch for n in config.data.crop)
    return ViT(grid=(x, y, z), remat=config.remat, dtype=jnp.dtype(config.dtype), **config.vit)


ENCODERS: dict[str, Callable[[ConfigDict], nn.Module]] = {"vit": vit}
