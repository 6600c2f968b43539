"""What a config trains, in PyTorch of MONAI's parts, a U-Net of nnU-Net's: the same shapes, batch and objective, with its fastest AdamW.

On a GPU it computes in bfloat16 by automatic mixed precision, channels last, and may be compiled; on a CPU in float32.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from brainseg_jax.core import runtime

Loss = Callable[[Any], Any]  # from a batch of images [b c x y z] to a scalar


def training(config: ConfigDict, compiled: bool) -> tuple[Callable[[], None], Callable[[], float]]:
    """(a training step on a batch of noise, again and again; the loss of the last one)."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(runtime.cores())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, loss_of = {"mae": mae, "ssl": ssl, "segmentation": segmentation}[config.objective](config)
    network = network.to(device)
    images = torch.rand(config.data.batch, config.channels, *config.data.crop, device=device)
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # the shapes never change
        network, images = (a.to(memory_format=torch.channels_last_3d) for a in (network, images))
    if compiled:
        loss_of = torch.compile(loss_of)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.optim.lr, betas=(config.optim.b1, config.optim.b2), fused=True)
    loss = torch.zeros(())

    def once() -> None:
        nonlocal loss
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(images)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.optim.clip or float("inf"))
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return once, lambda: loss.item()


def mae(config: ConfigDict) -> tuple[Any, Loss]:
    """MONAI's masked autoencoder, and the error on what it does not see."""
    import torch
    from monai.networks.nets import MaskedAutoEncoderViT

    vit, decoder, crop = config.vit, config.mae, tuple(config.data.crop)
    network = MaskedAutoEncoderViT(
        in_channels=config.channels,
        img_size=crop,
        patch_size=vit.patch,
        hidden_size=vit.width,
        mlp_dim=vit.hidden,
        num_layers=vit.depth,
        num_heads=vit.heads,
        masking_ratio=decoder.mask_ratio,
        decoder_hidden_size=decoder.width,
        decoder_mlp_dim=4 * decoder.width,
        decoder_num_layers=decoder.depth,
        decoder_num_heads=decoder.heads,
        pos_embed_type="learnable",
        decoder_pos_embed_type="learnable",
        qkv_bias=True,
    )
    if torch.cuda.is_available():  # it puts tokens of autocast's type among mask tokens of the parameters' own
        network.mask_tokens.data = network.mask_tokens.data.to(torch.bfloat16)
    p, (nx, ny, nz) = vit.patch, (n // vit.patch for n in crop)

    def loss(images: Any) -> Any:
        predicted, mask = network(images)
        patches = images.reshape(len(images), config.channels, nx, p, ny, p, nz, p)
        target = patches.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(len(images), nx * ny * nz, -1)
        return (((predicted - target) ** 2).mean(-1) * mask).sum() / mask.sum()

    return network, loss


def ssl(config: ConfigDict) -> tuple[Any, Loss]:
    """MONAI's Swin with the heads, the decoder and the two views of the research contributions' SSLHead."""
    import torch
    from monai.losses import ContrastiveLoss
    from monai.networks.nets.swin_unetr import SwinTransformer

    swin, width, crop = config.swin, config.swin.width, np.array(config.data.crop)
    encoder = SwinTransformer(
        config.channels, width, (swin.window,) * 3, (2,) * 3, swin.depths, swin.heads, norm_layer=torch.nn.LayerNorm, spatial_dims=3
    )
    deepest_width = width * 2 ** len(swin.depths)
    rotation, contrast = torch.nn.Linear(deepest_width, 4), torch.nn.Linear(deepest_width, config.ssl.embedding)
    layers: list[Any] = []
    for before, after in itertools.pairwise((*(width * 2**i for i in range(len(swin.depths), -1, -1)), width)):
        layers += [torch.nn.Conv3d(before, after, 3, padding=1), torch.nn.InstanceNorm3d(after), torch.nn.LeakyReLU(0.01)]
        layers += [torch.nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)]
    decoder = torch.nn.Sequential(*layers, torch.nn.Conv3d(width, config.channels, 1))
    likeness, random = ContrastiveLoss(temperature=config.ssl.temperature), np.random.default_rng(0)

    def view(image: Any) -> tuple[Any, Any, int]:
        k = int(random.integers(4))
        turned = torch.rot90(image, k, (2, 3))
        cut, total, target = turned.clone(), 0, random.uniform(0, config.ssl.share) * crop.prod()
        while total < target:
            at = random.integers(0, crop - 4)
            box = tuple(slice(a, a + side) for a, side in zip(at, random.integers(4, crop // 4), strict=True))
            noise = torch.randn(cut[0][box].shape, device=image.device)
            cut[0][box] = (noise - noise.min()) / (noise.max() - noise.min() + 1e-6)
            total += noise.numel()
        return turned, cut, k

    def loss(images: Any) -> Any:
        turned, cut, turns = zip(*(view(image) for _ in range(2) for image in images), strict=True)
        deepest = encoder(torch.stack(cut), True)[-1]
        tokens = deepest.flatten(2).transpose(1, 2)
        z = contrast(tokens[:, 1])
        turning = torch.nn.functional.cross_entropy(rotation(tokens[:, 0]), torch.tensor(turns, device=images.device))
        alike = likeness(*z.chunk(2))
        return turning + alike + torch.nn.functional.l1_loss(decoder(deepest), torch.stack(turned))

    return torch.nn.ModuleList([encoder, rotation, contrast, decoder]), loss


def segmentation(config: ConfigDict) -> tuple[Any, Loss]:
    """MONAI's UNETR or Swin UNETR, or nnU-Net's residual U-Net, with Dice and cross entropy against random labels."""
    import torch
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNETR, SwinUNETR

    crop, vit, swin = tuple(config.data.crop), config.vit, config.swin
    if config.decoder == "unet":
        network = residual_unet(config)
    elif config.decoder == "unetr":
        sizes = {"feature_size": config.unetr.width, "hidden_size": vit.width, "mlp_dim": vit.hidden, "num_heads": vit.heads}
        network = UNETR(config.channels, config.classes, crop, **sizes)
    else:
        sizes = {"feature_size": swin.width, "depths": swin.depths, "num_heads": swin.heads, "window_size": swin.window}
        network = SwinUNETR(config.channels, config.classes, **sizes)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
    labels = torch.randint(0, config.classes, (config.data.batch, 1, *crop))

    def loss(images: Any) -> Any:
        return criterion(network(images), labels.to(images.device))

    return network, loss


def residual_unet(config: ConfigDict) -> Any:
    """nnU-Net's residual U-Net as its plans build it, without deep supervision."""
    import torch
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    sizes, stages = config.unet, len(config.unet.features)
    strides = [1] + [2] * (stages - 1)
    return ResidualEncoderUNet(
        *(config.channels, stages, sizes.features, torch.nn.Conv3d, 3, strides, sizes.blocks, config.classes, sizes.decoder_blocks),
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
