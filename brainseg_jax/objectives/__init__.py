"""What is learned: Flax modules from a batch to (loss, metrics), each with its encoder in the field `encoder`. A file and a line each."""

from collections.abc import Callable

import flax.linen as nn
from ml_collections import ConfigDict

from brainseg_jax.models.encoders import encoder, segmenter
from brainseg_jax.objectives.mae import MAE
from brainseg_jax.objectives.segmentation import Segmentation
from brainseg_jax.objectives.ssl import SSL


def mae(config: ConfigDict) -> MAE:
    """Masked autoencoding of the config's encoder."""
    return MAE(encoder(config), channels=config.channels, **config.mae)


def ssl(config: ConfigDict) -> SSL:
    """Cut-out, rotation and contrast for the config's encoder."""
    return SSL(encoder(config), config.channels, **config.ssl)


def segmentation(config: ConfigDict) -> Segmentation:
    """Segmentation by the config's encoder and decoder."""
    return Segmentation(segmenter(config), config.segmentation.loss)


OBJECTIVES: dict[str, Callable[[ConfigDict], nn.Module]] = {"mae": mae, "ssl": ssl, "segmentation": segmentation}
