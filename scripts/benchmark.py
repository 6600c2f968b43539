"""Measures, side by side and in one run, what the documents claim.

    python scripts/benchmark.py --mode compute --against monai    the MAE training step, against MONAI's MaskedAutoEncoderViT
    python scripts/benchmark.py --mode ssl --against monai        the Swin's pretraining step, against the published one of MONAI's parts
    python scripts/benchmark.py --mode networks --against monai   UNETR and Swin UNETR, forward and training step, against MONAI's
    python scripts/benchmark.py --mode conv --against monai       one 3-D convolution: ours, XLA's own and PyTorch's
    python scripts/benchmark.py --mode loader                     crops per second that the input pipeline delivers
    python scripts/benchmark.py --mode attention                  our attention against jax.nn.dot_product_attention
    python scripts/benchmark.py --mode cache                      ways to keep a standardised volume

Machines are shared and noisy, so contestants take turns, each turn in a fresh process, and medians and ratios are reported. On a CPU all
of them get the huge pages that the main command takes for itself; where it says "as installed", the peer runs as it does by itself.
`--out FILE.md` keeps the table, with FILE.json beside it.
"""

import argparse
import itertools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brainseg_jax import runtime

Result = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=MODES, default="compute")
    parser.add_argument("--against", choices=("monai",), help="also measure the peer")
    parser.add_argument("--steps", type=int, default=12, help="timed steps in each turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each contestant (%(default)s)")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the peer runs there, and memory is read there
    if args.worker:
        print(json.dumps(WORKERS[args.worker](args.steps)))
        return 0
    table, results = MODES[args.mode](args)
    from brainseg_jax import record

    environment = record.environment()
    machine = environment["machine"]
    jax_version, commit = environment["packages"]["jax"], environment["commit"][:12]
    text = (
        f"{table}\n\n{machine['processor']}, {machine['cores']} cores; JAX {jax_version}; commit {commit}; `{' '.join(shown(sys.argv))}`\n"
    )
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
        args.out.with_suffix(".json").write_text(json.dumps({"results": results, "environment": environment}, indent=1) + "\n")
    return 0


def shown(argv: list[str]) -> list[str]:
    """The command as a reader would type it, without the place of the output."""
    words = ["python", "scripts/benchmark.py", *argv[1:]]
    return words[: words.index("--out")] if "--out" in words else words


# ---- the training step


def compute(args: argparse.Namespace) -> tuple[str, Any]:
    """The MAE's step, of MONAI's network and loss."""
    table, turns = steps_by_turns(args, "ours", "monai")
    table += [
        f"160³ crops, batch 1, float32, mask ratio 0.85, AdamW with clipping; loss after the last step {turns['ours'][0]['loss']:.4f}.",
        "GFLOP: 2 per multiply-add in linear layers and attention, forward + 2 × forward for the gradient.",
    ]
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


def training(config: Any) -> tuple[Callable[[], None], Callable[[], float]]:
    """(a training step of the config's objective on one crop of noise, again and again; the loss of the last one)."""
    runtime.keep_compiled_programs()
    import jax
    import jax.numpy as jnp

    from brainseg_jax import optim
    from brainseg_jax.data.augment import prepare_train
    from brainseg_jax.objectives import OBJECTIVES
    from brainseg_jax.step import init_params, init_state, make_train_step

    objective = OBJECTIVES[config.objective](config)
    batch = {"image": jax.random.randint(jax.random.key(0), (1, *config.data.crop, 1), 0, 255, jnp.uint8)}

    def params() -> Any:
        return init_params(objective, {"image": jnp.zeros(batch["image"].shape)}, 0)

    optimizer = optim.optimizer(config.optim, config.steps, jax.eval_shape(params))
    state, metrics = jax.jit(lambda: init_state(params(), optimizer))(), {}
    step = jax.jit(make_train_step(objective, optimizer, prepare_train(config), 0), donate_argnums=0)

    def once() -> None:
        nonlocal state, metrics
        state, metrics = step(state, batch)
        jax.block_until_ready(state)

    return once, lambda: float(metrics["loss"][0] / metrics["loss"][1])


def monai(steps: int) -> Result:
    """The same of MONAI's network of the same sizes, with the fastest AdamW that PyTorch has."""
    import torch
    from monai.networks.nets import MaskedAutoEncoderViT

    from brainseg_jax.config import base

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
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


def jax_matmul_peak() -> float:
    """`matmul_peak` of XLA's product."""
    import jax
    import jax.numpy as jnp

    product, square = jax.jit(lambda a: a @ a), jnp.ones((2048, 2048))
    return matmul_peak(lambda: jax.block_until_ready(product(square)))


def torch_matmul_peak() -> float:
    """`matmul_peak` of PyTorch's product."""
    import torch

    square = torch.ones(2048, 2048)
    return matmul_peak(lambda: square @ square)


def matmul_peak(product: Callable[[], Any]) -> float:
    """FLOP/s of the fastest of many 2048³ float32 products."""
    product()
    best = math.inf
    for _ in range(20):
        began = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best


# ---- the Swin's pretraining step


SSL_FLOP = 70.1e9  # operations of a forward pass of one view, 2 per multiply-add


def ssl(args: argparse.Namespace) -> tuple[str, Any]:
    """The step with two views of a crop, published heads and cut-out on both sides."""
    table, turns = steps_by_turns(args, "ours ssl", "monai ssl")
    table += ["Swin-T of width 48, 96³ crops, batch 1 × 2 views, float32, published cut-out and heads, AdamW with clipping."]
    return "\n".join(table), turns


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


# ---- UNETR and Swin UNETR


# Network, edge of the crop, whether it is a training step, and operations of a forward pass (2 per multiply-add, 36 classes).
CASES = {
    "UNETR 160³ forward": ("unetr", 160, False, 709.8e9),
    "UNETR 96³ training step": ("unetr", 96, True, 147.1e9),
    "Swin UNETR 48 96³ forward": ("swin_unetr", 96, False, 638.9e9),
    "Swin UNETR 48 96³ training step": ("swin_unetr", 96, True, 638.9e9),
}


def networks(args: argparse.Namespace) -> tuple[str, Any]:
    """Median seconds, share of the best matrix product and peak memory while stepping, contestants by turns, for each case."""
    contestants = ["ours"] + ([args.against] if args.against else [])
    lines = ["| | | seconds (median) | quartiles | share of matmul peak | peak memory, GiB |", "|---|---|---|---|---|---|"]
    results: dict[str, Any] = {}
    for case, (_, _, train, flop) in CASES.items():
        turns: dict[str, list[Result]] = {name: [] for name in contestants}
        for _ in range(args.turns):
            for name in contestants:
                turns[name].append(in_process(f"{name} {case}", args.steps))
        medians = {}
        for name in contestants:
            low, medians[name], high = statistics.quantiles(sorted(s for turn in turns[name] for s in turn["seconds"]), n=4)
            memory = statistics.median(turn["memory"] for turn in turns[name])
            peak = max(turn["matmul"] for turn in turns[name])
            share = 100 * flop * (3 if train else 1) / medians[name] / peak
            lines.append(
                f"| {case} | {turns[name][0]['what']} | {medians[name]:.2f} | {low:.2f}–{high:.2f} "
                f"| {share:.0f} % of {peak / 1e9:.0f} GFLOP/s | {memory / 2**30:.2f} |"
            )
            print(lines[-1], file=sys.stderr)
        if args.against:
            lines.append(f"| | ratio | {medians[args.against] / medians['ours']:.2f} | | | |")
        results[case] = turns
    lines += [
        "",
        "Batch 1, float32, 36 classes, random weights. A training step is Dice and cross entropy, gradient and AdamW. The share counts",
    ]
    lines += [
        "the operations of the plain algorithm, so a form with fewer operations can pass 100 %. Memory: of the process while it steps."
    ]
    return "\n".join(lines), results


def our_network(kind: str, edge: int, train: bool, steps: int) -> Result:
    """Seconds of `steps` forwards or training steps of our network."""
    runtime.keep_compiled_programs()
    import jax
    import optax

    from brainseg_jax import config as keys
    from brainseg_jax.losses import dice_cross_entropy
    from brainseg_jax.models import segmenter

    config = keys.base()
    config.dtype, config.data.crop, config.decoder = "float32", (edge, edge, edge), kind
    config.encoder = "vit" if kind == "unetr" else "swin"
    config.vit.update(positions="table", class_token=False, qkv_bias=False, eps=1e-5)  # MONAI's dialect
    network = segmenter(config)
    image = jax.random.uniform(jax.random.key(0), (1, edge, edge, edge, 1))
    labels = jax.random.randint(jax.random.key(1), image.shape[:-1], 0, config.classes)
    params = jax.jit(network.init)(jax.random.key(2), image)["params"]
    optimizer = optax.adamw(1e-4)
    forward = jax.jit(lambda params: network.apply({"params": params}, image))

    def update(params: Any, state: Any) -> tuple[Any, Any]:
        loss = lambda params: dice_cross_entropy(network.apply({"params": params}, image, True), labels).mean()  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    step, carried = jax.jit(update, donate_argnums=(0, 1)), (params, optimizer.init(params) if train else None)
    if train:
        del params  # the step takes it over

    def once() -> None:
        nonlocal carried
        if train:
            carried = jax.block_until_ready(step(*carried))
        else:
            jax.block_until_ready(forward(carried[0]))

    once()
    runtime.give_back_memory()  # as training does once it has compiled
    seconds, memory = timed(once, steps)
    return {"what": "brainseg_jax", "seconds": seconds, "memory": memory, "matmul": jax_matmul_peak()}


def monai_network(kind: str, edge: int, train: bool, steps: int) -> Result:
    """The same of MONAI's."""
    import torch
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNETR, SwinUNETR

    torch.manual_seed(0)
    torch.set_num_threads(runtime.cores())
    network = UNETR(1, 36, (edge, edge, edge)) if kind == "unetr" else SwinUNETR(1, 36, feature_size=48)
    image, labels = torch.rand(1, 1, edge, edge, edge), torch.randint(0, 36, (1, 1, edge, edge, edge))
    loss = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def once() -> None:
        if train:
            optimizer.zero_grad()
            loss(network(image), labels).backward()
            optimizer.step()
        else:
            with torch.no_grad():
                network(image)

    seconds, memory = timed(once, steps)
    return {"what": "MONAI", "seconds": seconds, "memory": memory, "matmul": torch_matmul_peak()}


def timed(once: Callable[[], Any], steps: int) -> tuple[list[float], int]:
    """Seconds of `steps` calls after one that is not counted, and the most memory the process held in them, in bytes."""
    once()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts again from here
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - began)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return seconds, int(line.split()[1]) * 1024


# ---- one convolution


SHAPES = ((96, 1, 16), (96, 16, 16), (96, 32, 16), (48, 32, 32), (96, 48, 48), (48, 48, 48), (24, 96, 96), (12, 192, 192), (6, 384, 384))


def conv(args: argparse.Namespace) -> tuple[str, Any]:
    """Milliseconds of a forward pass, and of one with both gradients, in fresh processes by turns."""
    contestants = ["ours conv", "xla conv"] + (["torch conv"] if args.against else [])
    turns: dict[str, list[Result]] = {name: [] for name in contestants}
    for _ in range(args.turns):
        for name in contestants:
            turns[name].append(in_process(name, args.steps))
    lines = ["| edge, channels | pass | ours, ms | XLA's own, ms | PyTorch, ms |", "|---|---|---|---|---|"]
    for n, i, o in SHAPES:
        for which in ("forward", "all three"):
            key = f"{n} {i} {o} {which}"
            cells = [f"{1e3 * statistics.median([s for turn in turns[name] for s in turn[key]]):.1f}" for name in contestants]
            lines.append(f"| {n}³, {i} → {o} | {which} | " + " | ".join(cells + [""] * (3 - len(cells))) + " |")
    return "\n".join([*lines, "", "A 3³ convolution, batch 1, float32; all three: forward and the gradients to image and kernel."]), turns


def jax_conv(ours: bool, steps: int) -> Result:
    """Times of `conv3`, or of XLA's own convolution."""
    runtime.keep_compiled_programs()
    import jax

    from brainseg_jax.models import conv as forms

    form = forms.conv3 if ours else forms._plain
    forward = jax.jit(form)
    both = jax.jit(lambda x, kernel, g: (form(x, kernel), jax.vjp(form, x, kernel)[1](g)))

    def of(n: int, i: int, o: int) -> Result:
        x, g = (jax.random.normal(jax.random.key(c), (1, n, n, n, c)) for c in (i, o))
        kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, i, o))
        return {
            f"{n} {i} {o} forward": timed(lambda: jax.block_until_ready(forward(x, kernel)), steps)[0],
            f"{n} {i} {o} all three": timed(lambda: jax.block_until_ready(both(x, kernel, g)), steps)[0],
        }

    return {key: seconds for shape in SHAPES for key, seconds in of(*shape).items()}


def torch_conv(steps: int) -> Result:
    """Times of PyTorch's convolution."""
    import torch

    torch.set_num_threads(runtime.cores())

    def of(n: int, i: int, o: int) -> Result:
        x, g = torch.randn(1, i, n, n, n, requires_grad=True), torch.randn(1, o, n, n, n)
        layer = torch.nn.Conv3d(i, o, 3, padding=1, bias=False)

        def forward() -> None:
            with torch.no_grad():
                layer(x)

        def both() -> None:
            x.grad = layer.weight.grad = None
            layer(x).backward(g)

        return {f"{n} {i} {o} forward": timed(forward, steps)[0], f"{n} {i} {o} all three": timed(both, steps)[0]}

    return {key: seconds for shape in SHAPES for key, seconds in of(*shape).items()}


def in_process(worker: str, steps: int, huge_pages: bool = True) -> Result:
    """A worker's result from a fresh process."""
    command = [sys.executable, __file__, "--worker", worker, "--steps", str(steps)]
    environment = os.environ if huge_pages else os.environ | {"GLIBC_TUNABLES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"the worker {worker} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- the input pipeline and its parts


def loader(args: argparse.Namespace) -> tuple[str, Any]:
    """Crops of 160³ per second from the cached sample cohort, with nothing else going on."""
    from brainseg_jax.config import base
    from brainseg_jax.data import dataset
    from brainseg_jax.data.pipeline import train_batches

    data = base().data
    with tempfile.TemporaryDirectory() as run:
        ready = dataset.prepare(data, None, Path(run), lambda _: None, lambda _: lambda done, total: None)
    files = [entry.file for entry in ready.train]
    lines = ["| threads | crops a volume | crops/s (median) | GB/s |", "|---|---|---|---|"]
    results = []
    for threads, crops in ((1, 1), (2, 1), (4, 1), (2, 4), (4, 4)):
        rates = []
        for _ in range(args.turns):
            batches = train_batches(files, crop=data.crop, crops_per_volume=crops, batch=crops, seed=0, start=0, threads=threads)
            for _ in range(2 * threads + 2):  # past what was read ahead
                next(batches)
            n = max(8, 96 // crops)
            began = time.perf_counter()
            for _ in range(n):
                next(batches)
            rates.append(n * crops / (time.perf_counter() - began))
        rate = statistics.median(rates)
        results.append({"threads": threads, "crops_per_volume": crops, "crops_per_second": rates})
        lines.append(f"| {threads} | {crops} | {rate:.0f} | {rate * math.prod(data.crop) / 1e9:.2f} |")
    return "\n".join([*lines, "", f"uint8 crops {data.crop} from cached volumes {data.size}, files in the page cache."]), results


def attention(args: argparse.Namespace) -> tuple[str, Any]:
    """Forward and gradient of one layer's attention, the two forms by turns."""
    runtime.keep_compiled_programs()
    import jax

    from brainseg_jax.models.attention import attend

    lines = ["| tokens, heads, width of a head | ours, ms | jax.nn.dot_product_attention, ms | ratio |", "|---|---|---|---|"]
    results = []
    for n, heads, width in ((1001, 16, 32), (151, 12, 64), (1000, 12, 64)):
        q, k, v = jax.random.normal(jax.random.key(0), (3, 1, n, heads, width))
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        calls = {}
        for name, form in (("ours", attend), ("theirs", jax.nn.dot_product_attention)):
            gradient = jax.jit(jax.grad(lambda q, k, v, form=form: (form(q, k, v) ** 2).sum(), argnums=(0, 1, 2)))
            calls[name] = lambda gradient=gradient, q=q, k=k, v=v: jax.block_until_ready(gradient(q, k, v))
            calls[name]()
        for _ in range(4 * args.turns):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                times[name].append(1e3 * (time.perf_counter() - began))
        a, b = (statistics.median(times[name]) for name in ("ours", "theirs"))
        results.append({"tokens": n, "heads": heads, "width": width, "milliseconds": times})
        lines.append(f"| {n}, {heads}, {width} | {a:.1f} | {b:.1f} | {b / a:.1f} |")
    return "\n".join([*lines, "", "Forward and gradient, float32, batch 1."]), results


def cache(args: argparse.Namespace) -> tuple[str, Any]:
    """Size and reading time of a real standardised volume, in formats that notice damage."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    from brainseg_jax.data import sample
    from brainseg_jax.data.standardize import spec, standardize

    volume = standardize(sample.template()[0], spec("default")).image
    lines = ["| format | MB | read, ms (median) |", "|---|---|---|"]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "volume")
        ways: dict[str, Callable[[], Any]] = {}
        for name, save in (("npz", np.savez), ("npz, compressed", np.savez_compressed)):
            save(f"{file}_{name}.npz", image=volume)
            ways[name] = lambda name=name: np.load(f"{file}_{name}.npz")["image"]
        for name, options in (("ArrayRecord", "group_size:1,uncompressed"), ("ArrayRecord, zstd", "group_size:1,zstd:1")):
            writer = ArrayRecordWriter(f"{file}_{name}.npz", options)
            writer.write(volume.tobytes())
            writer.close()

            def from_record(name: str = name) -> np.ndarray:
                record = ArrayRecordReader(f"{file}_{name}.npz", options="readahead_buffer_size:0").read([0])[0]
                return np.frombuffer(record, np.uint8).reshape(volume.shape)

            ways[name] = from_record
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(10 * args.turns):
            for name, read in ways.items():
                began = time.perf_counter()
                assert read().shape == volume.shape
                times[name].append(1e3 * (time.perf_counter() - began))
        for name in ways:
            size = Path(f"{file}_{name}.npz").stat().st_size / 1e6
            results.append({"format": name, "megabytes": size, "milliseconds": times[name]})
            lines.append(f"| {name} | {size:.1f} | {statistics.median(times[name]):.1f} |")
    return "\n".join([*lines, "", "The embedded template, standardised, uint8 192³; files in the page cache."]), results


MODES: dict[str, Callable[[argparse.Namespace], tuple[str, Any]]] = {
    "compute": compute,
    "ssl": ssl,
    "networks": networks,
    "conv": conv,
    "loader": loader,
    "attention": attention,
    "cache": cache,
}
WORKERS: dict[str, Callable[[int], Result]] = {
    "ours": ours,
    "monai": monai,
    "ours ssl": our_ssl,
    "monai ssl": monai_ssl,
    "ours conv": lambda steps: jax_conv(True, steps),
    "xla conv": lambda steps: jax_conv(False, steps),
    "torch conv": torch_conv,
}
for _case, (_kind, _edge, _train, _) in CASES.items():
    WORKERS[f"ours {_case}"] = partial(our_network, _kind, _edge, _train)
    WORKERS[f"monai {_case}"] = partial(monai_network, _kind, _edge, _train)

if __name__ == "__main__":
    runtime.with_huge_pages()
    sys.exit(main())
