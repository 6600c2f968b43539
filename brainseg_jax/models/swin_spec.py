"""The Swin's config keys, their checks, and construction of it and of Swin UNETR's decoder (models/swin.py, models/swin_unetr.py)."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from brainseg_jax.core.config_key import counts, fraction, group, key, one_of, positive, switch
from brainseg_jax.core.errors import InputError
from brainseg_jax.models.spec import EncoderSpec, Row, construct, nearest

SWIN = group(
    "The 3-D Swin transformer, and with its width Swin UNETR's decoder; the defaults are Swin-T.",
    acts_with="encoder=swin",
    part="encoder",
    width=key(48, positive, "channels of the first stage, and of Swin UNETR's decoder at full resolution (MONAI's feature_size)"),
    depths=key((2, 2, 2, 2), counts, "blocks in each stage"),
    heads=key((3, 6, 12, 24), counts, "attention heads in each stage"),
    window=key(7, positive, "tokens along a window of attention"),
    merging=key("merging", one_of("legacy", "merging", "mergingv2"), "order of patch merging: MONAI 1.5's; legacy: all published weights'"),
    v2=key(False, switch, "a residual convolution block before each stage (Swin UNETR v2)"),
    qkv_bias=key(True, switch, "biases of queries, keys and values"),
    drop_path=key(0.0, fraction, "largest chance to skip a branch in training; it grows with depth", part=""),
)


def check(c: ConfigDict) -> None:
    """Raises InputError for an unusable attention kernel, number of stages, width or crop."""
    if c.attention in ("cudnn", "pallas"):
        raise InputError(f"attention is {c.attention!r}, which takes no biases, and a Swin's windows have them; use auto")
    if len(c.swin.depths) != len(c.swin.heads):
        raise InputError(f"swin.depths {c.swin.depths} and swin.heads {c.swin.heads}: give a number each for every stage")
    for stage, heads in enumerate(c.swin.heads):
        if (width := c.swin.width * 2**stage) % heads:
            raise InputError(
                f"swin.width {c.swin.width} makes stage {stage + 1} {width} wide, which does not divide by its {heads} of swin.heads; "
                "use e.g. 12, 24, 36 or 48"
            )
    if c.objective != "segmentation":
        return
    if len(c.swin.depths) != 4:
        raise InputError(f"swin.depths {c.swin.depths}: Swin UNETR's decoder takes four stages; give four numbers, and four swin.heads")
    if any(n % multiple(c) for n in c.data.crop):
        usable = nearest(c.data.crop, multiple(c))
        raise InputError(f"data.crop {c.data.crop} is no multiple of {multiple(c)}, which Swin UNETR takes; use e.g. {usable}")


def multiple(c: ConfigDict) -> int:
    """The factor by which the coarsest map is smaller than the image: patches of 2, halved after each stage."""
    return 2 ** (len(c.swin.depths) + 1)


def build(c: ConfigDict) -> Any:
    """The Swin transformer, for crops of any size divisible by `multiple`."""
    return construct("swin:Swin", c, **c.swin)


def swin_unetr(c: ConfigDict) -> Any:
    """Swin UNETR's decoder, as wide as the encoder."""
    return construct("swin_unetr:SwinUNETR", c, width=c.swin.width)


def rows(c: ConfigDict, network: Any, pretraining: Callable[[], Any]) -> list[Row]:
    """Parameter counts of the transformer, of the encoder as the paper counts it, and of Swin UNETR."""
    from brainseg_jax.core.pytree import count

    side = {name: count(part) for name, part in network["decoder"].items()}
    paper = count(network["encoder"]) + sum(side[f"encoder{i}"] for i in (1, 2, 3, 4, 10))
    return [
        ("Swin-T", count(network["encoder"]), f"the transformer alone, width {c.swin.width}"),
        ("Swin-T, as the paper counts", paper, "and Swin UNETR's convolutions on the encoder's side (42.6 M at width 48)"),
        ("  of these, encoder10", side["encoder10"], "the convolutions at 1/32 of the grid"),
        ("Swin UNETR", count(network), f"encoder, decoder and head, {c.classes} classes"),
    ]


def small(c: ConfigDict) -> None:
    """Sets a Swin of 12 channels with windows of 4."""
    c.swin.width, c.swin.window = 12, 4


SPEC = EncoderSpec(
    name="swin",
    title="Swin transformer",
    keys={"swin": SWIN},
    check=check,
    build=build,
    decoders={"swin_unetr": swin_unetr},
    multiple=multiple,
    width="swin.width",
    rows=rows,
    blocks=r"encoder/layers(?P<stage>\d+)(?P<early>c?)/(?:blocks_(?P<block>\d+))?.*",
    image_kernels=("encoder/patch_embed/kernel", "decoder/encoder1/conv1/kernel", "decoder/encoder1/conv3/kernel"),
    pretraining="ssl",
    attends=True,
    recipes={"small": small},
)
