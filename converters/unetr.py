"""Tables for MONAI's UNETR, 0.8 to 1.6, with its versions' unused keys, and its construction."""

from typing import Any

import numpy as np

from brainseg_jax.core.errors import InputError
from converters.rules import Dead, Dialect, Leaves, at_least, table

ENCODER = table("""
    vit.patch_embedding.patch_embeddings.weight     encoder/patch_embed/kernel              patch
    vit.patch_embedding.patch_embeddings.bias       encoder/patch_embed/bias                vector
    vit.patch_embedding.position_embeddings         encoder/position/table                  table
    vit.blocks.{i}.norm{n}.weight                   encoder/blocks/norm{n}/scale[i]         vector
    vit.blocks.{i}.norm{n}.bias                     encoder/blocks/norm{n}/bias[i]          vector
    vit.blocks.{i}.attn.qkv.weight                  encoder/blocks/attn/qkv/kernel[i]       linear
    vit.blocks.{i}.attn.qkv.bias                    encoder/blocks/attn/qkv/bias[i]         vector
    vit.blocks.{i}.attn.out_proj.weight             encoder/blocks/attn/out_proj/kernel[i]  linear
    vit.blocks.{i}.attn.out_proj.bias               encoder/blocks/attn/out_proj/bias[i]    vector
    vit.blocks.{i}.mlp.linear{n}.weight             encoder/blocks/mlp/linear{n}/kernel[i]  linear
    vit.blocks.{i}.mlp.linear{n}.bias               encoder/blocks/mlp/linear{n}/bias[i]    vector
    vit.norm.weight                                 encoder/norm/scale                      vector
    vit.norm.bias                                   encoder/norm/bias                       vector

    vit.patch_embedding.patch_embeddings.1.weight   encoder/patch_embed/kernel              linear
    vit.patch_embedding.patch_embeddings.1.bias     encoder/patch_embed/bias                vector
""")  # the last two: the "perceptron" projection, of patches in our order

DECODER = table("""
    encoder1.layer.conv1.conv.weight                decoder/encoder1/conv1/kernel                       conv
    encoder1.layer.conv2.conv.weight                decoder/encoder1/conv2/kernel                       conv
    encoder1.layer.conv3.conv.weight                decoder/encoder1/conv3/kernel                       conv1
    encoder{n}.transp_conv_init.conv.weight         decoder/encoder{n}/transp_conv_init/kernel          up
    encoder{n}.blocks.{i}.0.conv.weight             decoder/encoder{n}/blocks_{i}_transp_conv/kernel    up
    encoder{n}.blocks.{i}.1.conv1.conv.weight       decoder/encoder{n}/blocks_{i}_conv_block/conv1/kernel   conv
    encoder{n}.blocks.{i}.1.conv2.conv.weight       decoder/encoder{n}/blocks_{i}_conv_block/conv2/kernel   conv
    decoder{n}.transp_conv.conv.weight              decoder/decoder{n}/transp_conv/kernel               up
    decoder{n}.conv_block.conv1.conv.weight         decoder/decoder{n}/conv_block/conv1/kernel          conv
    decoder{n}.conv_block.conv2.conv.weight         decoder/decoder{n}/conv_block/conv2/kernel          conv
    decoder{n}.conv_block.conv3.conv.weight         decoder/decoder{n}/conv_block/conv3/kernel          conv1
    out.conv.conv.weight                            head/kernel                                         conv1
    out.conv.conv.bias                              head/bias                                           vector
""")

_CROSS = "of a cross-attention that UNETR never runs"

DEAD = (
    Dead(
        "vit.patch_embedding.cls_token", "a class token that is never read", "0.8", "0.8",
        "vit.norm.weight", lambda a: np.zeros((1, 1, len(a)), a.dtype),
    ),
    Dead(
        "encoder{n}.blocks.{i}.1.conv3.conv.weight", "a shortcut that is only used where channels change", "0.8", "0.8",
        "encoder{n}.blocks.{i}.1.conv1.conv.weight", lambda a: np.zeros((*a.shape[:2], 1, 1, 1), a.dtype),
    ),
    Dead("vit.blocks.{i}.norm_cross_attn.weight", _CROSS, "1.4", "1.6", "vit.blocks.{i}.norm1.weight", np.ones_like),
    Dead("vit.blocks.{i}.norm_cross_attn.bias", _CROSS, "1.4", "1.6", "vit.blocks.{i}.norm1.bias", np.zeros_like),
    Dead("vit.blocks.{i}.cross_attn.to_q.weight", _CROSS, "1.4", "1.5", "vit.blocks.{i}.attn.out_proj.weight", np.zeros_like),
    Dead("vit.blocks.{i}.cross_attn.to_k.weight", _CROSS, "1.4", "1.5", "vit.blocks.{i}.attn.out_proj.weight", np.zeros_like),
    Dead("vit.blocks.{i}.cross_attn.to_v.weight", _CROSS, "1.4", "1.5", "vit.blocks.{i}.attn.out_proj.weight", np.zeros_like),
    Dead("vit.blocks.{i}.cross_attn.out_proj.weight", _CROSS, "1.4", "1.5", "vit.blocks.{i}.attn.out_proj.weight", np.zeros_like),
    Dead("vit.blocks.{i}.cross_attn.out_proj.bias", _CROSS, "1.4", "1.5", "vit.blocks.{i}.attn.out_proj.bias", np.zeros_like),
)  # fmt: skip


def transformer(leaves: Leaves) -> dict[str, Any]:
    """The config values of a ViT, and of its decoder if there is one, from the shapes of leaves."""
    depth, width, hidden = leaves["encoder/blocks/mlp/linear1/kernel"].shape
    sizes = {"vit.depth": depth, "vit.width": width, "vit.hidden": hidden, "vit.qkv_bias": "encoder/blocks/attn/qkv/bias" in leaves}
    if "decoder/encoder1/conv1/kernel" in leaves:
        sizes["channels"], sizes["unetr.width"] = leaves["decoder/encoder1/conv1/kernel"].shape[3:]
        sizes["classes"] = leaves["head/kernel"].shape[1]
    return sizes


def crop_of(leaves: Leaves, patch: int, given: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The crop of the learned positions: `given`, or a cube. Raises InputError if it does not match their number."""
    if "encoder/position/table" in leaves:
        counts = (len(leaves["encoder/position/table"]),)
        side = round(counts[0] ** (1 / 3))
    else:
        counts = (len(leaves["encoder/position/temporal"]), len(leaves["encoder/position/spatial"]))
        side = counts[0]
    crop = given or (side * patch,) * 3
    x, y, z = (n // patch for n in crop)
    if counts != ((x * y * z,) if len(counts) == 1 else (x, y * z)) or any(n % patch for n in crop):
        positions = " and ".join(map(str, counts))
        if given:
            raise InputError(
                f"--crop {','.join(map(str, crop))}: there are {positions} positions of {patch}³ voxels; give the crop they are for"
            )
        raise InputError(f"{positions} positions of {patch}³ voxels make no cube; say what crop the file is for, e.g. --crop 160,192,160")
    return crop


def constructor(config: Any, monai: str) -> tuple[str, dict[str, Any]]:
    """MONAI's class and its arguments for the config's network in a release. Raises InputError if the release does not support it."""
    if config.vit.qkv_bias and not at_least(monai, "1.0"):
        raise InputError(f"a UNETR with vit.qkv_bias cannot be made by MONAI {monai}; use --monai 1.0 or newer")
    return "UNETR", {
        "in_channels": config.channels,
        "out_channels": config.classes,
        "img_size": tuple(config.data.crop),
        "feature_size": config.unetr.width,
        "hidden_size": config.vit.width,
        "mlp_dim": config.vit.hidden,
        "num_heads": config.vit.heads,
        "proj_type" if at_least(monai, "1.3") else "pos_embed": "conv",
    } | ({"qkv_bias": True} if config.vit.qkv_bias else {})


BLOCKS = table("""
    vit.blocks.{i}      encoder/blocks/{i}      last
    vit.norm            encoder/norm            last
    encoder{n}          decoder/encoder{n}      first
    decoder{n}          decoder/decoder{n}      first
    out                 head                    first
""")

UNETR = Dialect(
    name="monai-unetr",
    what="MONAI's UNETR",
    fixed={
        "objective": "segmentation",
        "encoder": "vit",
        "decoder": "unetr",
        "vit.patch": 16,
        "vit.depth": 12,
        "vit.positions": "table",
        "vit.class_token": False,
        "vit.eps": 1e-5,
        "vit.features": (3, 6, 9),
    },
    parts=("encoder", "decoder", "head"),
    marks=(
        "vit.patch_embedding.position_embeddings",
        "vit.blocks.0.mlp.linear1.weight",
        "encoder1.layer.conv1.conv.weight",
        "out.conv.conv.weight",
    ),
    rows=ENCODER + DECODER,
    dead=DEAD,
    sizes=transformer,
    since="0.8",
    constructor=constructor,
    blocks=BLOCKS,
)
