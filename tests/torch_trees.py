"""PyTorch's and MONAI's layers as our trees, and their arrays as ours, for tests of parity.

`of(parameter)` says what of a parameter stands in the tree: `value` of it, or `slope`, its gradient.
"""

import jax
import numpy as np
from peers import peer

torch = peer("torch")


def value(parameter):
    return parameter.detach().numpy()


def slope(parameter):
    return parameter.grad.numpy()


def first(array):
    """Channels where PyTorch has them."""
    return torch.tensor(np.moveaxis(array, -1, 1)).requires_grad_()


def last(tensor):
    """PyTorch's channels, moved last."""
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def linear(layer, of):
    leaves = {"kernel": of(layer.weight).T}
    return leaves if layer.bias is None else leaves | {"bias": of(layer.bias)}


def norm(layer, of):
    return {"scale": of(layer.weight), "bias": of(layer.bias)}


def mlp(layer, of):
    return {"linear1": linear(layer.linear1, of), "linear2": linear(layer.linear2, of)}


def conv(layer, of):
    """A 3³ convolution's kernel."""
    return {"kernel": of(layer.weight).transpose(2, 3, 4, 1, 0)}


def patches(layer, of):
    """A convolution whose stride is its kernel, as a matrix product."""
    weight = of(layer.weight)
    return {"kernel": weight.transpose(2, 3, 4, 1, 0).reshape(-1, len(weight)), "bias": of(layer.bias)}


def doubling(layer, of):
    """A transposed convolution whose stride is its kernel, as a matrix product."""
    weight = of(layer.weight)
    return {"kernel": weight.transpose(0, 2, 3, 4, 1).reshape(len(weight), -1)}


def head(layer, of):
    """A 1³ convolution with bias."""
    return {"kernel": of(layer.weight)[:, :, 0, 0, 0].T, "bias": of(layer.bias)}


def residual(block, of):
    """A UnetResBlock."""
    tree = {"conv1": conv(block.conv1.conv, of), "conv2": conv(block.conv2.conv, of)}
    return tree | ({"conv3": {"kernel": conv(block.conv3.conv, of)["kernel"][0, 0, 0]}} if block.downsample else {})


def joining(block, of):
    """A UnetrUpBlock."""
    return {"transp_conv": doubling(block.transp_conv.conv, of), "conv_block": residual(block.conv_block, of)}


def vit(net, of):
    """A ViT, with patches embedded by a convolution or by a perceptron."""
    embedding = net.patch_embedding.patch_embeddings
    blocks = [
        {
            "norm1": norm(block.norm1, of),
            "attn": {"qkv": linear(block.attn.qkv, of), "out_proj": linear(block.attn.out_proj, of)},
            "norm2": norm(block.norm2, of),
            "mlp": mlp(block.mlp, of),
        }
        for block in net.blocks
    ]
    return {
        "patch_embed": patches(embedding, of) if isinstance(embedding, torch.nn.Conv3d) else linear(embedding[1], of),
        "position": {"table": of(net.patch_embedding.position_embeddings)[0]},
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
        "norm": norm(net.norm, of),
    }


def swin_stage(stage, of):
    """A BasicLayer of a SwinTransformer."""

    def block(b):
        table = {"relative_position_bias_table": of(b.attn.relative_position_bias_table)}
        return {
            "norm1": norm(b.norm1, of),
            "attn": {"qkv": linear(b.attn.qkv, of), "proj": linear(b.attn.proj, of)} | table,
            "norm2": norm(b.norm2, of),
            "mlp": mlp(b.mlp, of),
        }

    down = {"norm": norm(stage.downsample.norm, of), "reduction": linear(stage.downsample.reduction, of)}
    return {f"blocks_{j}": block(b) for j, b in enumerate(stage.blocks)} | {"downsample": down}


def swin(net, of):
    """A whole SwinTransformer, of either version."""
    tree = {"patch_embed": patches(net.patch_embed.proj, of)}
    for i in (1, 2, 3, 4):
        tree[f"layers{i}"] = swin_stage(getattr(net, f"layers{i}")[0], of)
        if net.use_v2:
            tree[f"layers{i}c"] = residual(getattr(net, f"layers{i}c")[0].layer, of)
    return tree


def resenc_unet(net, of):
    """A ResidualEncoderUNet of dynamic-network-architectures: {"encoder", "decoder", "head"}. Biases that norms take out have no place."""

    def normalised(layer):
        weight = of(layer.conv.weight)
        kernel = weight[:, :, 0, 0, 0].T if weight.shape[-1] == 1 else weight.transpose(2, 3, 4, 1, 0)
        return {"conv": {"kernel": kernel}, "norm": norm(layer.norm, of)}

    def block(b):
        tree = {"conv1": normalised(b.conv1), "conv2": normalised(b.conv2)}
        projection = [layer for layer in b.skip if hasattr(layer, "conv")] if isinstance(b.skip, torch.nn.Sequential) else []
        return tree | ({"skip": normalised(projection[0])} if projection else {})

    encoder = {"stem": normalised(net.encoder.stem.convs[0])}
    encoder |= {f"stages_{s}": {f"blocks_{i}": block(b) for i, b in enumerate(stage.blocks)} for s, stage in enumerate(net.encoder.stages)}
    decoder = {}
    for s, (up, stage) in enumerate(zip(net.decoder.transpconvs, net.decoder.stages, strict=True)):
        convs = {f"convs_{i}": normalised(layer) for i, layer in enumerate(stage.convs)}
        decoder[f"stages_{s}"] = {"transpconv": doubling(up, of) | {"bias": of(up.bias)}} | convs
    return {"encoder": encoder, "decoder": decoder, "head": head(net.decoder.seg_layers[-1], of)}
