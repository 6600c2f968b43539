"""The ViT's and UNETR's config keys, their checks, and construction of the networks (models/vit.py, models/unetr.py)."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from brainseg_jax.core.config_key import fraction, group, key, number, one_of, positive, switch
from brainseg_jax.core.errors import InputError
from brainseg_jax.models.spec import EncoderSpec, Row, construct, nearest

VIT = group(
    "The 3-D Vision Transformer; the defaults are ViT-B.",
    acts_with="encoder=vit",
    part="encoder",
    patch=key(16, positive, "voxels along a patch"),
    width=key(768, positive, "width of a token"),
    depth=key(12, positive, "blocks"),
    heads=key(12, positive, "attention heads"),
    hidden=key(3072, positive, "width of the MLP"),
    positions=key("sincos", one_of("sincos", "separable", "table"), "fixed, or learned: per slice and place (paper), per token (MONAI)"),
    class_token=key(True, switch, "a token beside those of the patches"),
    qkv_bias=key(True, switch, "biases of queries, keys and values"),
    eps=key(1e-6, positive, "epsilon of layer norm"),
    features=key((3, 6, 9), number, "blocks, from 0, whose maps UNETR gets beside the last (MONAI); (2, 5, 8): the paper", part="decoder"),
    drop_path=key(0.0, fraction, "largest chance to skip a branch; grows with depth", acts_with="objective=segmentation", part=""),
)
UNETR = group(
    "UNETR's decoder.",
    acts_with="objective=segmentation decoder=unetr",
    part="decoder",
    width=key(16, positive, "channels at full resolution (MONAI's feature_size)"),
)


def check(c: ConfigDict) -> None:
    """Raises InputError for an unusable crop, width, kernel or choice of feature maps."""
    if any(n % c.vit.patch for n in c.data.crop):
        raise InputError(f"data.crop {c.data.crop} is no multiple of vit.patch {c.vit.patch}; use e.g. {nearest(c.data.crop, c.vit.patch)}")
    if c.vit.width % c.vit.heads:
        raise InputError(f"vit.width {c.vit.width} does not divide by vit.heads {c.vit.heads}; choose another number of heads")
    if c.attention == "cudnn" and c.dtype == "float32":
        raise InputError("attention is 'cudnn', a GPU's kernel in 16 bits, and dtype is float32; use dtype=bfloat16, or attention=auto")
    if c.objective == "segmentation":
        _check_unetr(c)


def _check_unetr(c: ConfigDict) -> None:
    """Raises InputError unless the ViT fits UNETR's decoder: three skips from ascending blocks before the last, patches of 2⁴ voxels."""
    depth, features = c.vit.depth, tuple(c.vit.features)
    if depth < 4:
        raise InputError(f"vit.depth is {depth}; UNETR's decoder takes the outputs of three blocks and the last one: use 4 or more")
    if len(features) != 3 or features != tuple(sorted({f for f in features if f in range(depth - 1)})):
        usual = tuple((depth - 1) * i // 4 for i in (1, 2, 3))
        raise InputError(
            f"vit.features is {features}; UNETR's decoder takes three blocks, counted from 0 and in their order, before the last one of "
            f"vit.depth {depth}: use e.g. {usual}"
        )
    if c.vit.patch != 16:
        raise InputError(f"vit.patch is {c.vit.patch}; UNETR's decoder doubles four times, so use 16")


def build(c: ConfigDict) -> Any:
    """The ViT for the config's crops."""
    return construct("vit:ViT", c, grid=tuple(n // c.vit.patch for n in c.data.crop), attention=c.attention, **c.vit)


def unetr(c: ConfigDict) -> Any:
    """UNETR's decoder."""
    return construct("unetr:UNETR", c, width=c.unetr.width)


def rows(c: ConfigDict, network: Any, pretraining: Callable[[], Any]) -> list[Row]:
    """Parameter counts of the ViT, of MAE and of UNETR."""
    from brainseg_jax.core.pytree import count

    mae, (x, y, z) = pretraining(), c.data.crop
    vit = count(mae["encoder"])
    # The paper's ViT carries timm's positions of 14² patches and its classifier of 1000 classes.
    paper = vit + (14 * 14 + 1) * c.vit.width + 1000 * (c.vit.width + 1)
    return [
        ("ViT", vit, f"the encoder, {c.vit.positions} positions, for {x} × {y} × {z} voxels"),
        ("ViT, as the paper counts", paper, "and timm's 2-D positions and classifier, which nothing uses (89.2 M at 160³)"),
        ("MAE", count(mae), "encoder and decoder of pretraining"),
        ("UNETR", count(network), f"encoder, decoder and head, width {c.unetr.width}, {c.classes} classes"),
        ("  its decoder", count(network["decoder"]), "convolutions only"),
    ]


def small(c: ConfigDict) -> None:
    """Sets a ViT-S, with a decoder as wide as the small Swin's."""
    c.vit.width, c.vit.heads, c.vit.hidden = 384, 6, 1536
    c.unetr.width = 12


SPEC = EncoderSpec(
    name="vit",
    title="ViT",
    keys={"vit": VIT, "unetr": UNETR},
    check=check,
    build=build,
    decoders={"unetr": unetr},
    multiple=lambda c: c.vit.patch,
    width="vit.width",
    rows=rows,
    blocks=r"encoder/blocks/.*",
    image_kernels=("encoder/patch_embed/kernel", "decoder/encoder1/conv1/kernel", "decoder/encoder1/conv3/kernel"),
    pretraining="mae",
    fixed_size=True,
    attends=True,
    recipes={"small": small},
)
