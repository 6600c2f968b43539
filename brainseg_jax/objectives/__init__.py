"""Training objectives: Flax modules from a batch to (loss, metrics), whose parameters have the encoder under "encoder"."""

from collections.abc import Callable

import flax.linen as nn
from ml_collections import ConfigDict

from brainseg_jax.models.encoders import encoder, segmenter
from brainseg_jax.objectives.mae import MAE
from brainseg_jax.objectives.segmentation import Segmentation
from brainseg_jax.objectives.ssl import SSL


def mae(config: ConfigDict) -> MAE:
    """The masked autoencoding objective for the config's encoder."""
    return MAE(encoder(config), channels=config.channels, **config.mae)


def ssl(config: ConfigDict) -> SSL:
    """The cut-out, rotation and contrast objective for the config's encoder."""
    return SSL(encoder(config), config.channels, **config.ssl)


def segmentation(config: ConfigDict) -> Segmentation:
    """The segmentation objective for the config's encoder and decoder."""
    return Segmentation(segmenter(config), config.segmentation.loss)


OBJECTIVES: dict[str, Callable[[ConfigDict], nn.Module]] = {"mae": mae, "ssl": ssl, "segmentation": segmentation}
