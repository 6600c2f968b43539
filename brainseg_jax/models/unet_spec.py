"""The residual U-Net's config keys, their checks, and construction of encoder and decoder (models/unet.py)."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from brainseg_jax.core.config_key import counts, group, key
from brainseg_jax.core.errors import InputError
from brainseg_jax.models.spec import EncoderSpec, Row, construct, nearest

UNET = group(
    "A residual U-Net, encoder resenc and decoder unet; the defaults are nnU-Net's ResEnc with its six stages.",
    acts_with="encoder=resenc",
    part="encoder",
    features=key((32, 64, 128, 256, 320, 320), counts, "channels of each stage: at full resolution, at half of it, and so on"),
    blocks=key((1, 3, 4, 6, 6, 6), counts, "residual blocks in each stage of the encoder"),
    decoder_blocks=key((1, 1, 1, 1, 1), counts, "convolutions in each stage of the decoder, the coarsest first", part="decoder"),
)


def check(c: ConfigDict) -> None:
    """Raises InputError for an unusable number of stages or crop."""
    u, stages, side = c.unet, len(c.unet.features), multiple(c)
    if stages < 2 or len(u.blocks) != stages:
        raise InputError(
            f"unet.features {u.features} and unet.blocks {u.blocks}: give a number each for every stage, and two stages or more"
        )
    if len(u.decoder_blocks) != stages - 1:
        raise InputError(
            f"unet.decoder_blocks is {u.decoder_blocks}; the decoder has a stage fewer than the {stages} of unet.features: give "
            f"{stages - 1} numbers, e.g. {(1,) * (stages - 1)}"
        )
    if any(n % side for n in c.data.crop) or set(c.data.crop) == {side}:
        usable = nearest(c.data.crop, side)
        raise InputError(
            f"data.crop {c.data.crop}: a U-Net of {stages} stages takes multiples of {side}, and more than one of them, as instance "
            f"norm makes nothing of a single voxel; use e.g. {usable if set(usable) != {side} else (2 * side,) * 3}, or fewer stages"
        )


def multiple(c: ConfigDict) -> int:
    """The factor by which the coarsest map is smaller than the image: halved before each stage but the first."""
    return 2 ** (len(c.unet.features) - 1)


def build(c: ConfigDict) -> Any:
    """The residual encoder, for crops of any size divisible by `multiple`."""
    return construct("unet:ResEnc", c, features=c.unet.features, blocks=c.unet.blocks)


def unet(c: ConfigDict) -> Any:
    """The U-Net's decoder, as wide as the encoder."""
    return construct("unet:UNet", c, convs=c.unet.decoder_blocks)


def rows(c: ConfigDict, network: Any, pretraining: Callable[[], Any]) -> list[Row]:
    """Parameter counts of the encoder, the whole network and the decoder."""
    from brainseg_jax.core.pytree import count

    stages, blocks = len(c.unet.features), sum(c.unet.blocks)
    return [
        ("ResEnc", count(network["encoder"]), f"the encoder, {stages} stages of {blocks} residual blocks"),
        ("U-Net", count(network), f"encoder, decoder and head, {c.classes} classes"),
        ("  its decoder", count(network["decoder"]), "transposed convolutions, and those behind them"),
    ]


def small(c: ConfigDict) -> None:
    """Sets a quarter of nnU-Net's width and five stages, whose coarsest map of a 64³ crop has 4³ voxels, the least that nnU-Net plans with.

    A step on 96³ voxels takes as many FLOPs as the small Swin's network, within 2 %.
    """
    c.unet.features, c.unet.blocks, c.unet.decoder_blocks = (8, 16, 32, 64, 128), (1, 3, 4, 4, 4), (1, 1, 1, 1)


def two_millimetres(c: ConfigDict) -> None:
    """Sets five stages: a sixth would have 3³ voxels, and nnU-Net plans with at least 4 a side."""
    c.unet.features, c.unet.blocks, c.unet.decoder_blocks = c.unet.features[:5], c.unet.blocks[:5], c.unet.decoder_blocks[:4]


SPEC = EncoderSpec(
    name="resenc",
    title="residual U-Net",
    keys={"unet": UNET},
    check=check,
    build=build,
    decoders={"unet": unet},
    multiple=multiple,
    width="unet.features",
    rows=rows,
    blocks=r"encoder/stages_(?P<stage>\d+)/blocks_(?P<block>\d+)/.*",
    followed=False,
    image_kernels=("encoder/stem/conv/kernel",),
    recipes={"small": small, "2mm": two_millimetres},
)
