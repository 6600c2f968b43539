"""Tables for files of the paper's code: MAE pretraining, and UNETR fine-tuned from it; timm's names, a class token, separable positions.

They describe its files and contain none of its code. Its Swin files are MONAI's and research-contributions' (swin_unetr.py).
"""

from typing import Any

import numpy as np

from converters.rules import Dead, Dialect, Leaves, table, under
from converters.unetr import DECODER, transformer

BLOCKS = table("""
    {i}.norm{n}.weight      norm{n}/scale[i]            vector
    {i}.norm{n}.bias        norm{n}/bias[i]             vector
    {i}.attn.qkv.weight     attn/qkv/kernel[i]          linear
    {i}.attn.qkv.bias       attn/qkv/bias[i]            vector
    {i}.attn.proj.weight    attn/out_proj/kernel[i]     linear
    {i}.attn.proj.bias      attn/out_proj/bias[i]       vector
    {i}.mlp.fc{n}.weight    mlp/linear{n}/kernel[i]     linear
    {i}.mlp.fc{n}.bias      mlp/linear{n}/bias[i]       vector
""")

ENCODER = (
    *table("""
        patch_embed.proj.weight     encoder/patch_embed/kernel      patch
        patch_embed.proj.bias       encoder/patch_embed/bias        vector
        cls_token                   encoder/cls_token               token
        pos_embed_class             encoder/cls_position            token
        pos_embed_spatial           encoder/position/spatial        table
        pos_embed_temporal          encoder/position/temporal       table
        norm.weight                 encoder/norm/scale              vector
        norm.bias                   encoder/norm/bias               vector
    """),
    *under(BLOCKS, "blocks.", "encoder/blocks/"),
)

MAE_DECODER = (
    *table("""
        decoder_embed.weight        embed/kernel            linear
        decoder_embed.bias          embed/bias              vector
        mask_token                  mask_token              token
        decoder_pos_embed_class     cls_position            token
        decoder_pos_embed_spatial   position/spatial        table
        decoder_pos_embed_temporal  position/temporal       table
        decoder_norm.weight         norm/scale              vector
        decoder_norm.bias           norm/bias               vector
        decoder_pred.weight         predict/kernel          linear
        decoder_pred.bias           predict/bias            vector
    """),
    *under(BLOCKS, "decoder_blocks.", "blocks/"),
)

_FLAT = "timm's positions of a two-dimensional image"
_CLASSIFIER = "of timm's classifier, which segmentation never runs"

# Remains of timm's two-dimensional ViT, from which the paper's encoder is derived: 196 patches and a class token, 1000 classes.
UNETR_DEAD = (
    Dead("encoder.pos_embed", _FLAT, beside="encoder.norm.weight", make=lambda a: np.zeros((1, 197, len(a)), a.dtype)),
    Dead("encoder.head.weight", _CLASSIFIER, beside="encoder.norm.weight", make=lambda a: np.zeros((1000, len(a)), a.dtype)),
    Dead("encoder.head.bias", _CLASSIFIER, beside="encoder.norm.weight", make=lambda a: np.zeros(1000, a.dtype)),
)

_VIT = {"encoder": "vit", "vit.positions": "separable", "vit.class_token": True, "vit.eps": 1e-6, "vit.qkv_bias": True}


def _pretraining(leaves: Leaves) -> dict[str, Any]:
    depth, width, _ = leaves["blocks/mlp/linear1/kernel"].shape
    patch = round(leaves["predict/kernel"].shape[1] ** (1 / 3))
    channels = len(leaves["encoder/patch_embed/kernel"]) // patch**3
    return transformer(leaves) | {"mae.depth": depth, "mae.width": width, "vit.patch": patch, "channels": channels}


MAE = Dialect(
    name="paper-mae",
    what="the paper's masked autoencoder",
    fixed={"objective": "mae", **_VIT},
    parts=("encoder", "embed", "mask_token", "cls_position", "position", "norm", "predict", "blocks"),
    marks=("pos_embed_spatial", "blocks.0.mlp.fc1.weight", "decoder_blocks.0.mlp.fc1.weight", "decoder_pred.weight"),
    rows=ENCODER + MAE_DECODER,
    dead=(),
    sizes=_pretraining,
)

UNETR = Dialect(
    name="paper-unetr",
    what="the paper's UNETR",
    fixed={"objective": "segmentation", "decoder": "unetr", "vit.patch": 16, "vit.features": (2, 5, 8), **_VIT},
    parts=("encoder", "decoder", "head"),
    marks=("encoder.pos_embed_spatial", "encoder.blocks.0.mlp.fc1.weight", "encoder1.layer.conv1.conv.weight", "out.conv.conv.weight"),
    rows=under(ENCODER, "encoder.", "") + DECODER,
    dead=UNETR_DEAD,
    sizes=transformer,
)
