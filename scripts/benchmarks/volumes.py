"""Whole volumes by sliding windows, 36 classes, to a label map: against MONAI's SlidingWindowInferer with the same weights.

Both begin with the volume as an array and end with labels as an array. The peer's weights are written to a file and converted, so the two
label maps must agree: fast cannot mean broken.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measure import Result, in_process, timed

from brainseg_jax.core import runtime

EDGE, CLASSES, OVERLAP = 192, 36, 0.5
CASES = {"UNETR": ("unetr", 160), "Swin UNETR 48": ("swin_unetr", 96)}


def volumes(args: argparse.Namespace) -> tuple[str, Any]:
    """Seconds and peak memory of a whole volume, contestants by turns, for each network."""
    contestants = ["ours", *([args.against] if args.against else [])]
    lines = ["| | | seconds a volume (median) | with compiling | peak memory, GiB |", "|---|---|---|---|---|"]
    results: dict[str, Any] = {}
    for case, (kind, edge) in CASES.items():
        turns: dict[str, list[Result]] = {name: [] for name in contestants}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            weights(kind, folder)
            for _ in range(args.turns):
                for name in contestants:
                    turns[name].append(in_process(f"{name} volume {case}", args.steps, folder=folder))
                    print(f"{case}, {name}: {statistics.median(turns[name][-1]['seconds']):.1f} s a volume", file=sys.stderr)
            labels = {name: np.load(folder / f"{name}.npy") for name in contestants}
        medians = {name: statistics.median(s for turn in turns[name] for s in turn["seconds"]) for name in contestants}
        memory = {name: statistics.median(turn["memory"] for turn in turns[name]) for name in contestants}
        for name in contestants:
            cold = f"{statistics.median(turn['first'] for turn in turns[name]):.1f}" if name == "ours" else "–"
            what = f"{case}, windows of {edge}³"
            lines.append(f"| {what} | {turns[name][0]['what']} | {medians[name]:.1f} | {cold} | {memory[name] / 2**30:.2f} |")
        if args.against:
            same = 100 * float(np.mean(labels["ours"] == labels[args.against]))
            ratio, share = medians[args.against] / medians["ours"], memory["ours"] / memory[args.against]
            lines.append(f"| | ratio of time {ratio:.2f}, share of memory {share:.2f}; {same:.3f} % of the voxels labelled alike | | | |")
        results[case] = turns
    lines += [
        "",
        f"{EDGE}³ voxels, {CLASSES} classes, overlap {OVERLAP}, Gaussian blending, one window at a time, float32, random weights converted "
        "from MONAI's. Memory: the most that the process holds while it segments, interpreter and libraries included.",
    ]
    return "\n".join(lines), results


def weights(kind: str, folder: Path) -> None:
    """MONAI's random weights as `monai.pt`, and converted as the checkpoint `ours`."""
    in_process(f"weights {kind}", 1, folder=folder)
    command = [sys.executable, "-m", "converters.convert", str(folder / "monai.pt"), str(folder / "ours")]
    command += ["--merge", "merging"] if kind == "swin_unetr" else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])


def write_weights(kind: str, steps: int, folder: Path) -> Result:
    """MONAI's network as it is made."""
    import torch

    torch.manual_seed(0)
    torch.save(peer(kind).state_dict(), folder / "monai.pt")
    return {}


def peer(kind: str) -> Any:
    """MONAI's network, to be evaluated."""
    from monai.networks.nets import UNETR, SwinUNETR

    edge = dict(CASES.values())[kind]
    network = UNETR(1, CLASSES, (edge,) * 3) if kind == "unetr" else SwinUNETR(1, CLASSES, feature_size=48)
    return network.eval()


def volume() -> np.ndarray:
    """The volume that all segment, x y z."""
    return np.random.default_rng(0).random((EDGE,) * 3, np.float32)


def ours(kind: str, steps: int, folder: Path) -> Result:
    """Seconds of `steps` volumes after the first, whose time with compiling is told apart."""
    runtime.keep_compiled_programs()
    from brainseg_jax.inference import network, sliding_window

    model, image = network.load(folder / "ours").model(), volume()[..., None]
    found = None

    def once() -> None:
        nonlocal found
        found = sliding_window.segment([model], image, overlap=OVERLAP, blend="gaussian")

    began = time.perf_counter()
    once()
    first = time.perf_counter() - began
    seconds, memory = timed(once, steps, warm=True)
    np.save(folder / "ours.npy", found.labels)
    return {"what": "brainseg_jax", "seconds": seconds, "first": first, "memory": memory}


def monai(kind: str, steps: int, folder: Path) -> Result:
    """The same of MONAI's; a single window warms it up."""
    import torch
    from monai.inferers import SlidingWindowInferer

    torch.set_num_threads(runtime.cores())
    network, edge = peer(kind), dict(CASES.values())[kind]
    network.load_state_dict(torch.load(folder / "monai.pt"))
    image, found = torch.from_numpy(volume())[None, None], None
    inferer = SlidingWindowInferer((edge,) * 3, sw_batch_size=1, overlap=OVERLAP, mode="gaussian")

    def once() -> None:
        nonlocal found
        with torch.no_grad():
            found = inferer(image, network).argmax(dim=1)

    with torch.no_grad():
        network(image[..., :edge, :edge, :edge])
    seconds, memory = timed(once, steps, warm=True)
    np.save(folder / "monai.npy", found[0].numpy().astype(np.uint8))
    return {"what": "MONAI", "seconds": seconds, "memory": memory}


WORKERS = {
    **{f"weights {kind}": partial(write_weights, kind) for kind, _ in CASES.values()},
    **{
        f"{whose} volume {case}": partial(worker, kind)
        for case, (kind, _) in CASES.items()
        for whose, worker in (("ours", ours), ("monai", monai))
    },
}
