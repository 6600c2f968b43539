"""Training steps of both pretrainings, against the same of MONAI's parts."""

import argparse
import itertools
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from benchmarks.measure import Result, in_process, jax_matmul_peak, timed, torch_matmul_peak

from brainseg_jax import runtime

SSL_FLOP = 70.1e9  # operations of a forward pass of one view, 2 per multiply-add


def compute(args: argparse.Namespace) -> tuple[str, Any]:
    """The MAE's step, of MONAI's network and loss."""
    table, turns = steps_by_turns(args, "ours", "monai")
    table += [
        f"160³ crops, batch 1, float32, mask ratio 0.85, AdamW with clipping; loss after the last step {turns['ours'][0]['loss']:.4f}.",
        "GFLOP: 2 per multiply-add in linear layers and attention, forward + 2 × forward for the gradient.",
    ]
    return "\n".join(table), turns


def ssl(args: argparse.Namespace) -> tuple[str, Any]:
    """The step with two views of a crop, published heads and cut-out on both sides."""
    table, turns = steps_by_turns(args, "ours ssl", "monai ssl")
    table += ["Swin-T of width 48, 96³ crops, batch 1 × 2 views, float32, published cut-out and heads, AdamW with clipping."]
    return "\n".join(table), turns


def steps_by_turns(args: argparse.Namespace, ours: str, peer: str) -> tuple[list[str], dict[str, list[Result]]]:
    """Median step of each contestant over all turns, its share of the best matrix product it reaches itself, and its memory."""
    as_installed = f"{peer}, as installed"
    contestants = [ours, *([peer, as_installed] if args.against else [])]
    turns: dict[str, list[Result]] = {name: [] for name in contestants}
    for turn in range(args.turns):
        for name in contestants:
            turns[name].append(in_process(name.removesuffix(", as installed"), args.steps, huge_pages=name != as_installed))
            last = turns[name][-1]
            print(f"turn {turn + 1}, {name}: {statistics.median(last['seconds']):.3f} s a step", file=sys.stderr)
    lines = [
        "| | step, s (median) | quartiles | crops/s | GFLOP a step | share of matmul peak | peak memory, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    medians = {}
    for name in contestants:
        seconds = sorted(s for turn in turns[name] for s in turn["seconds"])
        low, middle, high = statistics.quantiles(seconds, n=4)
        medians[name] = middle
        flop = turns[name][0]["flop"]
        peak = max(turn["matmul"] for turn in turns[name])
        memory = max(turn["memory"] for turn in turns[name])
        what = turns[name][0]["what"] + (", as installed" if name == as_installed else "")
        lines.append(
            f"| {what} | {middle:.3f} | {low:.3f}–{high:.3f} | {1 / middle:.2f} | {flop / 1e9:.0f} "
            f"| {100 * flop / middle / peak:.0f} % of {peak / 1e9:.0f} GFLOP/s | {memory / 2**30:.2f} |"
        )
    for name in contestants[1:]:
        ratios = [statistics.median(b["seconds"]) / statistics.median(a["seconds"]) for a, b in zip(turns[ours], turns[name], strict=True)]
        which = "The peer as installed" if name == as_installed else "The peer with huge pages"
        lines += [
            "",
            f"{which}: ratio of medians {medians[name] / medians[ours]:.2f}; turn by turn {', '.join(f'{r:.2f}' for r in ratios)}.",
        ]
    return [*lines, ""], turns


def training(config: Any) -> tuple[Callable[[], None], Callable[[], float]]:
    """(a training step of the config's objective on one crop of noise, again and again; the loss of the last one)."""
    runtime.keep_compiled_programs()
    import jax

    from brainseg_jax import optim
    from brainseg_jax.data.augment import prepare_train
    from brainseg_jax.objectives import OBJECTIVES
    from brainseg_jax.program import parts_of_batch, sample_of
    from brainseg_jax.step import init_params, init_state, make_train_step

    objective = OBJECTIVES[config.objective](config)
    top = {"image": 255, "label": config.classes}
    batch = {
        name: jax.random.randint(jax.random.key(0), (1, *shape), 0, top[name]).astype(dtype)
        for name, (shape, dtype) in parts_of_batch(config).items()
    }

    def params() -> Any:
        return init_params(objective, sample_of(config), 0)

    optimizer = optim.optimizer(config.optim, config.steps, jax.eval_shape(params))
    state, metrics = jax.jit(lambda: init_state(params(), optimizer))(), {}
    step = jax.jit(make_train_step(objective, optimizer, prepare_train(config), 0), donate_argnums=0)

    def once() -> None:
        nonlocal state, metrics
        state, metrics = step(state, batch)
        jax.block_until_ready(state)

    return once, lambda: float(metrics["loss"][0] / metrics["loss"][1])


def ours(steps: int) -> Result:
    """Seconds of `steps` training steps, with learned positions as the peer has, of one crop of noise."""
    from brainseg_jax.config import base

    config = base()
    config.steps, config.dtype, config.vit.positions = 1000, "float32", "separable"
    once, loss = training(config)
    seconds = []
    for i in range(steps + 2):
        began = time.perf_counter()
        once()
        seconds += [time.perf_counter() - began] if i >= 2 else []
    tokens = math.prod(n // config.vit.patch for n in config.data.crop)
    return {
        "what": "brainseg_jax",
        "seconds": seconds,
        "flop": mae_flop(tokens, kept=150, embedded=150, predicted=tokens - 150, encoder=config.vit, decoder=config.mae),
        "matmul": jax_matmul_peak(),
        "loss": loss(),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def monai(steps: int) -> Result:
    """The same of MONAI's network of the same sizes, with the fastest AdamW that PyTorch has."""
    import torch
    from monai.networks.nets import MaskedAutoEncoderViT

    from brainseg_jax.config import base

    torch.manual_seed(0)
    torch.set_num_threads(runtime.cores())
    c = base()
    network = MaskedAutoEncoderViT(
        in_channels=1,
        img_size=160,
        patch_size=16,
        hidden_size=c.vit.width,
        mlp_dim=c.vit.hidden,
        num_layers=c.vit.depth,
        num_heads=c.vit.heads,
        masking_ratio=c.mae.mask_ratio,
        decoder_hidden_size=c.mae.width,
        decoder_mlp_dim=4 * c.mae.width,
        decoder_num_layers=c.mae.depth,
        decoder_num_heads=c.mae.heads,
        pos_embed_type="learnable",
        decoder_pos_embed_type="learnable",
        qkv_bias=True,
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=c.optim.peak, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    image = torch.rand(1, 1, 160, 160, 160)
    seconds, loss = [], torch.zeros(())
    for i in range(steps + 2):
        began = time.perf_counter()
        predicted, mask = network(image)
        target = image.reshape(1, 10, 16, 10, 16, 10, 16).permute(0, 1, 3, 5, 2, 4, 6).reshape(1, 1000, 4096)
        loss = (((predicted - target) ** 2).mean(-1) * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        seconds += [time.perf_counter() - began] if i >= 2 else []
    return {
        "what": "MONAI MaskedAutoEncoderViT",
        "seconds": seconds,
        "flop": mae_flop(1000, kept=150, embedded=1000, predicted=1000, encoder=c.vit, decoder=c.mae),
        "matmul": torch_matmul_peak(),
        "loss": loss.item(),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def mae_flop(tokens: int, kept: int, embedded: int, predicted: int, encoder: Any, decoder: Any) -> int:
    """Operations of a training step; the patch embedding has no gradient towards the image."""

    def blocks(n: int, depth: int, width: int, hidden: int) -> int:
        return depth * (2 * n * width * (4 * width + 2 * hidden) + 4 * n * n * width)

    voxels = encoder.patch**3
    both = blocks(kept + 1, encoder.depth, encoder.width, encoder.hidden)
    both += 2 * (kept + 1) * encoder.width * decoder.width
    both += blocks(tokens + 1, decoder.depth, decoder.width, 4 * decoder.width)
    both += 2 * predicted * decoder.width * voxels
    return 3 * both + 2 * (2 * embedded * voxels * encoder.width)


def our_ssl(steps: int) -> Result:
    """Seconds of `steps` training steps on one crop of noise."""
    from brainseg_jax.config import base

    config = base()
    config.update(steps=1000, dtype="float32", objective="ssl", encoder="swin", data={"crop": (96, 96, 96)})
    config.ssl.update(cut="paper", heads="tokens")
    once, loss = training(config)
    seconds, memory = timed(once, steps)
    return {
        "what": "brainseg_jax",
        "seconds": seconds,
        "flop": 6 * SSL_FLOP,
        "matmul": jax_matmul_peak(),
        "loss": loss(),
        "memory": memory,
    }


def monai_ssl(steps: int) -> Result:
    """The same of MONAI's Swin with the heads, the decoder and the views of the research contributions' SSLHead."""
    import torch
    from monai.losses import ContrastiveLoss
    from monai.networks.nets.swin_unetr import SwinTransformer

    torch.manual_seed(0)
    torch.set_num_threads(runtime.cores())
    swin = SwinTransformer(1, 48, (7,) * 3, (2,) * 3, (2, 2, 2, 2), (3, 6, 12, 24), norm_layer=torch.nn.LayerNorm, spatial_dims=3)
    rotation, contrast = torch.nn.Linear(768, 4), torch.nn.Linear(768, 512)
    layers: list[Any] = []
    for before, after in itertools.pairwise((768, 384, 192, 96, 48, 48)):
        layers += [torch.nn.Conv3d(before, after, 3, padding=1), torch.nn.InstanceNorm3d(after), torch.nn.LeakyReLU(0.01)]
        layers += [torch.nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)]
    decoder = torch.nn.Sequential(*layers, torch.nn.Conv3d(48, 1, 1))
    network = torch.nn.ModuleList([swin, rotation, contrast, decoder])
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-4, fused=True)
    likeness = ContrastiveLoss(temperature=0.5)
    image, random = torch.rand(1, 1, 96, 96, 96), np.random.default_rng(0)

    def view() -> tuple[Any, Any, int]:
        k = int(random.integers(4))
        turned = torch.rot90(image, k, (3, 4))
        cut, total, target = turned.clone(), 0, random.uniform(0, 0.3) * 96**3
        while total < target:
            at = random.integers(0, 96 - 4, 3)
            box = tuple(slice(a, a + side) for a, side in zip(at, random.integers(4, 24, 3), strict=True))
            noise = torch.randn(cut[0, 0][box].shape)
            cut[0, 0][box] = (noise - noise.min()) / (noise.max() - noise.min() + 1e-6)
            total += noise.numel()
        return turned, cut, k

    loss = torch.zeros(())

    def once() -> None:
        nonlocal loss
        (turned1, cut1, k1), (turned2, cut2, k2) = view(), view()
        deepest = swin(torch.cat([cut1, cut2]), True)[-1]
        tokens = deepest.flatten(2).transpose(1, 2)
        z = contrast(tokens[:, 1])
        loss = torch.nn.functional.cross_entropy(rotation(tokens[:, 0]), torch.tensor([k1, k2])) + likeness(z[:1], z[1:])
        loss = loss + torch.nn.functional.l1_loss(decoder(deepest), torch.cat([turned1, turned2]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    seconds, memory = timed(once, steps)
    return {
        "what": "SSLHead of MONAI's parts",
        "seconds": seconds,
        "flop": 6 * SSL_FLOP,
        "matmul": torch_matmul_peak(),
        "loss": loss.item(),
        "memory": memory,
    }


WORKERS = {"ours": ours, "monai": monai, "ours ssl": our_ssl, "monai ssl": monai_ssl}
