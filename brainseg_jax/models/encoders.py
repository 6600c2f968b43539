"""The available encoders, each a line here and a spec file, and the network of a config. JAX is imported only when a network is built."""

from typing import Any

from ml_collections import ConfigDict

from brainseg_jax.models import swin_spec, unet_spec, vit_spec
from brainseg_jax.models.spec import EncoderSpec

ENCODERS: dict[str, EncoderSpec] = {spec.name: spec for spec in (vit_spec.SPEC, swin_spec.SPEC, unet_spec.SPEC)}


def encoder(config: ConfigDict) -> Any:
    """The config's encoder."""
    return ENCODERS[config.encoder].build(config)


def segmenter(config: ConfigDict) -> Any:
    """The config's encoder and decoder, with a head for its classes."""
    import jax.numpy as jnp

    from brainseg_jax.models.segmenter import Segmenter

    decoder = ENCODERS[config.encoder].decoders[config.decoder](config)
    return Segmenter(encoder(config), decoder, config.classes, jnp.dtype(config.dtype))
