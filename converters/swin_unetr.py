"""Tables for MONAI's Swin UNETR, 0.9 to 1.6, and its pretraining files; the orders of patch merging; its construction."""

from itertools import pairwise
from typing import Any

import numpy as np

from brainseg_jax.core.errors import InputError
from converters.rules import OTHER, Dead, Dialect, Leaves, Row, at_least, table, under

SWIN = table("""
    patch_embed.proj.weight                                 patch_embed/kernel                      patch2
    patch_embed.proj.bias                                   patch_embed/bias                        vector
    layers{s}c.0.layer.conv1.conv.weight                    layers{s}c/conv1/kernel                 conv
    layers{s}c.0.layer.conv2.conv.weight                    layers{s}c/conv2/kernel                 conv
    layers{s}.0.blocks.{b}.norm{n}.weight                   layers{s}/blocks_{b}/norm{n}/scale      vector
    layers{s}.0.blocks.{b}.norm{n}.bias                     layers{s}/blocks_{b}/norm{n}/bias       vector
    layers{s}.0.blocks.{b}.attn.qkv.weight                  layers{s}/blocks_{b}/attn/qkv/kernel    linear
    layers{s}.0.blocks.{b}.attn.qkv.bias                    layers{s}/blocks_{b}/attn/qkv/bias      vector
    layers{s}.0.blocks.{b}.attn.proj.weight                 layers{s}/blocks_{b}/attn/proj/kernel   linear
    layers{s}.0.blocks.{b}.attn.proj.bias                   layers{s}/blocks_{b}/attn/proj/bias     vector
    layers{s}.0.blocks.{b}.attn.relative_position_bias_table    layers{s}/blocks_{b}/attn/relative_position_bias_table  matrix
    layers{s}.0.blocks.{b}.mlp.linear{n}.weight             layers{s}/blocks_{b}/mlp/linear{n}/kernel   linear
    layers{s}.0.blocks.{b}.mlp.linear{n}.bias               layers{s}/blocks_{b}/mlp/linear{n}/bias     vector
    layers{s}.0.downsample.norm.weight                      layers{s}/downsample/norm/scale         vector
    layers{s}.0.downsample.norm.bias                        layers{s}/downsample/norm/bias          vector
    layers{s}.0.downsample.reduction.weight                 layers{s}/downsample/reduction/kernel   linear

    layers{s}.0.blocks.{b}.mlp.fc{n}.weight                 layers{s}/blocks_{b}/mlp/linear{n}/kernel   linear
    layers{s}.0.blocks.{b}.mlp.fc{n}.bias                   layers{s}/blocks_{b}/mlp/linear{n}/bias     vector
""")  # the last two: as pretraining names them

DECODER = table("""
    encoder{n}.layer.conv1.conv.weight          decoder/encoder{n}/conv1/kernel                 conv
    encoder{n}.layer.conv2.conv.weight          decoder/encoder{n}/conv2/kernel                 conv
    encoder{n}.layer.conv3.conv.weight          decoder/encoder{n}/conv3/kernel                 conv1
    decoder{n}.transp_conv.conv.weight          decoder/decoder{n}/transp_conv/kernel           up
    decoder{n}.conv_block.conv1.conv.weight     decoder/decoder{n}/conv_block/conv1/kernel      conv
    decoder{n}.conv_block.conv2.conv.weight     decoder/decoder{n}/conv_block/conv2/kernel      conv
    decoder{n}.conv_block.conv3.conv.weight     decoder/decoder{n}/conv_block/conv3/kernel      conv1
    out.conv.conv.weight                        head/kernel                                     conv1
    out.conv.conv.bias                          head/bias                                       vector
""")

HEADS = table("""
    rotation_head.weight        rotation/kernel             linear
    rotation_head.bias          rotation/bias               vector
    contrastive_head.weight     contrast/kernel             linear
    contrastive_head.bias       contrast/bias               vector
    conv.0.weight               reconstruct/conv0/kernel    conv
    conv.0.bias                 reconstruct/conv0/bias      vector
    conv.4.weight               reconstruct/conv1/kernel    conv
    conv.4.bias                 reconstruct/conv1/bias      vector
    conv.8.weight               reconstruct/conv2/kernel    conv
    conv.8.bias                 reconstruct/conv2/bias      vector
    conv.12.weight              reconstruct/conv3/kernel    conv
    conv.12.bias                reconstruct/conv3/bias      vector
    conv.16.weight              reconstruct/conv4/kernel    conv
    conv.16.bias                reconstruct/conv4/bias      vector
    conv.20.weight              reconstruct/out/kernel      conv1
    conv.20.bias                reconstruct/out/bias        vector
""")


def _index(bias_table: np.ndarray) -> np.ndarray:
    from brainseg_jax.models.windows import relative

    return relative(_window(bias_table)).astype(np.int64)


def _window(bias_table: np.ndarray) -> int:
    side = round(len(bias_table) ** (1 / 3))
    if side**3 != len(bias_table) or side % 2 == 0:
        raise InputError(f"a table of {len(bias_table)} relative positions is of no window with equal sides; {OTHER}")
    return (side + 1) // 2


def _dead(prefix: str) -> tuple[Dead, ...]:
    """The unused keys of a Swin encoder's files, which begin with `prefix`."""
    attention = f"{prefix}layers{{s}}.0.blocks.{{b}}.attn."
    return (
        Dead(
            f"{attention}relative_position_index", "a constant, which is made again on export",
            beside=f"{attention}relative_position_bias_table", make=_index,
        ),
        Dead(f"{prefix}norm.weight", "a final norm that Swin UNETR does not have"),
        Dead(f"{prefix}norm.bias", "a final norm that Swin UNETR does not have"),
    )  # fmt: skip


def _encoder(leaves: Leaves) -> dict[str, Any]:
    rows, width = leaves["encoder/patch_embed/kernel"].shape
    tables = [f"encoder/layers{s}/blocks_{{}}/attn/relative_position_bias_table" for s in (1, 2, 3, 4)]
    missing = [path.format(0) for path in tables if path.format(0) not in leaves]
    if missing:
        raise InputError(f"{missing[0]} is missing; a Swin encoder has four stages, so get the whole file")
    return {
        "channels": rows // 8,
        "swin.width": width,
        "swin.depths": tuple(next(b for b in range(len(leaves)) if path.format(b) not in leaves) for path in tables),
        "swin.heads": tuple(leaves[path.format(0)].shape[1] for path in tables),
        "swin.window": _window(leaves[tables[0].format(0)]),
        "swin.qkv_bias": "encoder/layers1/blocks_0/attn/qkv/bias" in leaves,
        "swin.v2": "encoder/layers1c/conv1/kernel" in leaves,
    }


def _network(leaves: Leaves) -> dict[str, Any]:
    return _encoder(leaves) | {"classes": leaves["head/kernel"].shape[1]}


def head_shapes(width: int, channels: int, contrast: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the pretraining heads for an encoder of `width`; `contrast` is the length of the contrastive embedding."""
    deep = 16 * width
    shapes = {"rotation/kernel": (deep, 4), "rotation/bias": (4,), "contrast/kernel": (deep, contrast), "contrast/bias": (contrast,)}
    sides = (16, 8, 4, 2, 1, 1)
    for i, (before, after) in enumerate(pairwise(sides)):
        shapes |= {f"reconstruct/conv{i}/kernel": (3, 3, 3, before * width, after * width), f"reconstruct/conv{i}/bias": (after * width,)}
    return shapes | {"reconstruct/out/kernel": (width, channels), "reconstruct/out/bias": (channels,)}


# ---- patch merging

MERGE_UNKNOWN = (
    "the order of patch merging cannot be seen in weights; say with which MONAI it was trained, e.g. --monai 1.3, or add --merge legacy "
    '(0.9 to 1.4: all published weights), --merge merging (1.5 or newer) or --merge mergingv2 (made with downsample="mergingv2")'
)


def checked_crop(flag: str, crop: tuple[int, int, int]) -> tuple[int, int, int]:
    """The crop. Raises InputError, naming the flag, if a Swin network cannot take it."""
    if any(n % 32 for n in crop) or crop == (32, 32, 32):
        raise InputError(f"{flag} {','.join(map(str, crop))}: a Swin network takes multiples of 32, and more than one; give the nearest")
    return crop


def check_merging(merge: str, monai: str) -> None:
    """Raises InputError for a merging order that a release does not have."""
    if merge == "merging" and not at_least(monai, "1.5"):
        raise InputError(f"--merge merging: what MONAI {monai} calls so is the legacy order; give --merge legacy, or --monai alone")
    if merge == "legacy" and at_least(monai, "1.5"):
        raise InputError(
            f"--merge legacy: MONAI {monai} has no such order since it was changed in 1.5; give one of --merge and --monai alone"
        )
    if merge == "mergingv2" and not at_least(monai, "1.0"):
        raise InputError(f"--merge mergingv2: MONAI {monai} has the legacy order only; give one of --merge and --monai alone")


def merging_of(monai: str) -> str:
    """The merging order of MONAI's default, "merging", in a release."""
    return "merging" if at_least(monai, "1.5") else "legacy"


def exported_merging(ours: str, monai: str, wanted: str) -> str:
    """The merging order to write for a release; `wanted` may be "". Raises InputError if the release or the weights do not allow it."""
    if ours == "legacy" and wanted not in ("", "legacy"):
        raise InputError(
            f"--merge {wanted}: this was trained with the order of merging of MONAI 0.9 to 1.4, legacy, which takes two of eight "
            "neighbouring voxels twice and leaves two out, so that no other order computes the same; leave --merge out"
        )
    if ours != "legacy" and wanted == "legacy":
        raise InputError(
            f"--merge legacy: leaves out two of eight neighbouring voxels, and this was trained with all of them, {ours}, so that it would "
            "compute something else; leave --merge out"
        )
    if ours == "legacy" and at_least(monai, "1.5"):
        raise InputError(
            f"trained with the order of merging of MONAI 0.9 to 1.4, legacy; MONAI {monai} has no such order since it was changed in 1.5, "
            "and would give wrong outputs; use --monai 1.4"
        )
    written = wanted or (ours if at_least(monai, "1.5") else "legacy" if ours == "legacy" else "mergingv2")
    if written == "merging" and not at_least(monai, "1.5"):
        raise InputError(f"--merge merging: what MONAI {monai} calls so is the legacy order; use --merge mergingv2 or --monai 1.5")
    if written == "mergingv2" and not at_least(monai, "1.0"):
        raise InputError(f"trained with {ours}, and MONAI {monai} has the legacy order only; use --monai 1.0 or newer")
    return written


def for_release(config: Any, leaves: Leaves, monai: str, wanted: str = "") -> tuple[Any, Leaves]:
    """The network in the merging order to write for a release. Raises InputError as `exported_merging` does."""
    written = config.copy_and_resolve_references()
    written.swin.merging = exported_merging(config.swin.merging, monai, wanted)
    return written, reorder(leaves, config.swin.merging, written.swin.merging)


def reorder(leaves: Leaves, old: str, new: str) -> Leaves:
    """The same network with another order of octants: an exact permutation of the eight blocks of channels before the reduction."""
    from brainseg_jax.models.swin import OCTANTS

    order = [OCTANTS[old].index(octant) for octant in OCTANTS[new]]

    def moved(path: str, leaf: np.ndarray) -> np.ndarray:
        if "/downsample/" not in path:
            return leaf
        return leaf.reshape(8, -1, *leaf.shape[1:])[order].reshape(leaf.shape)

    return {path: moved(path, leaf) for path, leaf in leaves.items()}


def constructor(config: Any, monai: str) -> tuple[str, dict[str, Any]]:
    """MONAI's class and its arguments for the config's network in a release. Raises InputError if the release does not support it."""
    swin = config.swin
    later = {"use_v2": ("1.2", swin.v2, False), "window_size": ("1.5", swin.window, 7), "qkv_bias": ("1.5", swin.qkv_bias, True)}
    chosen = {}
    for name, (since, value, default) in later.items():
        if value != default:
            if not at_least(monai, since):
                raise InputError(f"{name}={value} cannot be had with MONAI {monai}; use --monai {since} or newer")
            chosen[name] = value
    shape = {"depths": (tuple(swin.depths), (2, 2, 2, 2)), "num_heads": (tuple(swin.heads), (3, 6, 12, 24))}
    chosen |= {name: value for name, (value, default) in shape.items() if value != default}
    if at_least(monai, "1.0"):
        chosen["downsample"] = "merging" if swin.merging == "legacy" else swin.merging
    size = {} if at_least(monai, "1.5") else {"img_size": tuple(config.data.crop)}
    return "SwinUNETR", size | {"in_channels": config.channels, "out_channels": config.classes, "feature_size": swin.width} | chosen


BLOCKS = table("""
    swinViT.patch_embed                 encoder/patch_embed             first
    swinViT.layers{s}c.0                encoder/layers{s}c              first
    swinViT.layers{s}.0.blocks.{b}      encoder/layers{s}/blocks_{b}    last
    swinViT.layers{s}.0.downsample      encoder/layers{s}/downsample    last
    encoder{n}                          decoder/encoder{n}              first
    decoder{n}                          decoder/decoder{n}              first
    out                                 head                            first
""")

_MARKS = ("patch_embed.proj.weight", "layers1.0.blocks.0.attn.relative_position_bias_table")

SWIN_UNETR = Dialect(
    name="monai-swin-unetr",
    what="MONAI's Swin UNETR",
    fixed={"objective": "segmentation", "encoder": "swin", "decoder": "swin_unetr"},
    parts=("encoder", "decoder", "head"),
    marks=(*(f"swinViT.{key}" for key in _MARKS), "encoder1.layer.conv1.conv.weight", "out.conv.conv.weight"),
    rows=under(SWIN, "swinViT.", "encoder/") + DECODER,
    dead=_dead("swinViT."),
    sizes=_network,
    since="0.9",
    constructor=constructor,
    blocks=BLOCKS,
)

_PRETRAINED = {"objective": "ssl", "encoder": "swin", "decoder": "swin_unetr"}

SSL = Dialect(
    name="ssl-head",
    what="the Swin encoder and heads of self-supervised pretraining (SSLHead of research-contributions)",
    fixed=_PRETRAINED,
    parts=("encoder", "rotation", "contrast", "reconstruct"),
    marks=(*(f"swinViT.{key}" for key in _MARKS), "rotation_head.weight", "contrastive_head.weight"),
    rows=under(SWIN, "swinViT.", "encoder/") + HEADS,
    dead=_dead("swinViT."),
    sizes=_encoder,
)

SWINVIT = Dialect(
    name="swinvit",
    what="a Swin encoder alone (model_swinvit.pt of research-contributions)",
    fixed=_PRETRAINED,
    parts=("encoder",),
    marks=_MARKS,
    rows=under(SWIN, "", "encoder/"),
    dead=_dead(""),
    sizes=_encoder,
    since="0.9",
    constructor=constructor,
    blocks=BLOCKS,
    holds="net.swinViT",
)


def _nested(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(row._replace(theirs="encoder." + row.theirs.replace("}.0.", "}.0.0.")) for row in rows)


_DECODER = "of a pretraining decoder, which MONAI leaves out too"

DISRUPTIVE = Dialect(
    name="ssl-pretrained",
    what="the Swin encoder of ssl_pretrained_weights.pth (disruptive autoencoders)",
    fixed=_PRETRAINED,
    parts=("encoder",),
    marks=("encoder.patch_embed.proj.weight", "encoder.layers1.0.0.blocks.0.attn.relative_position_bias_table"),
    rows=_nested(SWINVIT.rows),
    dead=(
        Dead("encoder.layers{s}.0.0.blocks.{b}.attn.relative_position_index", "a constant"),
        Dead("encoder.norm.*", "a final norm that Swin UNETR does not have"),
        Dead("encoder.mask_token", "of the pretraining task"),
        Dead("decoder*", _DECODER),
        Dead("out.conv.conv.*", _DECODER),
    ),
    sizes=_encoder,
    written=False,
)
