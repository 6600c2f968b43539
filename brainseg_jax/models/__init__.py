"""Networks in Flax Linen. An encoder is a file here and a line in ENCODERS; a decoder a file and a line in DECODERS."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from brainseg_jax.models.segmenter import Segmenter
from brainseg_jax.models.swin import Swin
from brainseg_jax.models.swin_unetr import SwinUNETR
from brainseg_jax.models.unet import ResEnc, UNet
from brainseg_jax.models.unetr import UNETR
from brainseg_jax.models.vit import ViT


def _vit(config: ConfigDict) -> ViT:
    """The 3-D ViT for the config's crops."""
    x, y, z = (n // config.vit.patch for n in config.data.crop)
    return ViT(grid=(x, y, z), remat=config.remat, attention=config.attention, dtype=jnp.dtype(config.dtype), **config.vit)


def _swin(config: ConfigDict) -> Swin:
    """The 3-D Swin transformer, for crops of any size divisible by 32."""
    return Swin(remat=config.remat, dtype=jnp.dtype(config.dtype), **config.swin)


def _resenc(config: ConfigDict) -> ResEnc:
    """The residual encoder, for crops of any size that halves as often as it has stages after the first."""
    return ResEnc(config.unet.features, config.unet.blocks, config.remat, jnp.dtype(config.dtype))


def _unetr(config: ConfigDict) -> UNETR:
    """UNETR's decoder."""
    return UNETR(config.unetr.width, config.remat, jnp.dtype(config.dtype))


def _swin_unetr(config: ConfigDict) -> SwinUNETR:
    """Swin UNETR's decoder, as wide as the config's encoder."""
    return SwinUNETR(config.swin.width, config.remat, jnp.dtype(config.dtype))


def _unet(config: ConfigDict) -> UNet:
    """The U-Net's decoder, as wide as the config's encoder."""
    return UNet(config.unet.decoder_blocks, config.remat, jnp.dtype(config.dtype))


ENCODERS: dict[str, Callable[[ConfigDict], nn.Module]] = {"vit": _vit, "swin": _swin, "resenc": _resenc}
DECODERS: dict[str, Callable[[ConfigDict], nn.Module]] = {"unetr": _unetr, "swin_unetr": _swin_unetr, "unet": _unet}


def segmenter(config: ConfigDict) -> Segmenter:
    """The config's encoder and decoder, with a head for its classes."""
    return Segmenter(ENCODERS[config.encoder](config), DECODERS[config.decoder](config), config.classes, jnp.dtype(config.dtype))
