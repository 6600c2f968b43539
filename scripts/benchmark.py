"""Measures, side by side and in one run, what the documents claim.

    python scripts/benchmark.py --mode compute --against monai    the MAE training step, against MONAI's MaskedAutoEncoderViT
    python scripts/benchmark.py --mode ssl --against monai        the Swin's pretraining step, against the published one of MONAI's parts
    python scripts/benchmark.py --mode networks --against monai   UNETR and Swin UNETR, forward and training step, against MONAI's
    python scripts/benchmark.py --mode volumes --against monai    whole volumes by sliding windows, against MONAI's SlidingWindowInferer
    python scripts/benchmark.py --mode predict                    the command that segments a scan, from the shell to the label map
    python scripts/benchmark.py --mode augment                    each change of augmentation, and its share of the training step
    python scripts/benchmark.py --mode conv --against monai       one 3-D convolution: ours, XLA's own and PyTorch's
    python scripts/benchmark.py --mode loader                     crops per second that the input pipeline delivers
    python scripts/benchmark.py --mode attention                  our attention against jax.nn.dot_product_attention
    python scripts/benchmark.py --mode cache                      ways to keep a standardised volume
    python scripts/benchmark.py --preset configs/FILE.py:VARIANT --mode compute|e2e|loader      any config, on what there is

Machines are shared and noisy, so contestants take turns, each turn in a fresh process, and medians and ratios are reported. On a CPU all
of them get the huge pages that the main command takes for itself; where it says "as installed", the peer runs as it does by itself.
`--out FILE.md` keeps the table, with FILE.json beside it. What is measured stands in scripts/benchmarks/, a file for each subject.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import attention, augmentation, command, convolution, feeding, networks, presets, pretraining, volumes
from benchmarks.measure import Result

from brainseg_jax import runtime

MODES: dict[str, Callable[[argparse.Namespace], tuple[str, Any]]] = {
    "compute": pretraining.compute,
    "ssl": pretraining.ssl,
    "networks": networks.networks,
    "volumes": volumes.volumes,
    "predict": command.predict,
    "augment": augmentation.augment,
    "conv": convolution.conv,
    "loader": feeding.loader,
    "attention": attention.attention,
    "cache": feeding.cache,
}
WORKERS: dict[str, Callable[..., Result]] = {
    **pretraining.WORKERS,
    **networks.WORKERS,
    **volumes.WORKERS,
    **augmentation.WORKERS,
    **convolution.WORKERS,
    **presets.WORKERS,
}
OF_PRESETS = {"compute": presets.compute, "e2e": presets.e2e, "loader": presets.loader}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices={**MODES, **OF_PRESETS}, default="compute")
    parser.add_argument("--preset", action="append", metavar="FILE.py:VARIANT", help="a config, as it trains (compute, e2e, loader)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change of the presets' values")
    parser.add_argument("--against", choices=("monai",), help="also measure the peer")
    parser.add_argument("--steps", type=int, default=12, help="timed steps in each turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each contestant (%(default)s)")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the peer runs there, and memory is read there
    if args.worker:
        print(json.dumps(WORKERS[args.worker](args.steps, *([args.folder] if args.folder else []))))
        return 0
    modes = OF_PRESETS if args.preset else MODES
    if args.mode not in modes:
        parser.error(f"--mode {args.mode} is measured {'without' if args.preset else 'with'} --preset")
    table, results = modes[args.mode](args)
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


if __name__ == "__main__":
    runtime.with_huge_pages()
    sys.exit(main())
