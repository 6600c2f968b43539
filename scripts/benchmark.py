"""Measures, side by side and in one run, what the documents claim.

    python scripts/benchmark.py --against monai                   training steps of the four full-size networks, against MONAI's
    python scripts/benchmark.py --mode e2e                        the main command with all that it does
    python scripts/benchmark.py --mode loader                     crops per second that the input pipeline delivers
    python scripts/benchmark.py --mode profile                    where the time of a training step goes on a CPU
    python scripts/benchmark.py --mode networks --against monai   forward passes of UNETR and Swin UNETR, against MONAI's
    python scripts/benchmark.py --mode volumes --against monai    whole volumes by sliding windows, against MONAI's SlidingWindowInferer
    python scripts/benchmark.py --mode predict                    the command that segments a scan, from the shell to the label map
    python scripts/benchmark.py --mode augment                    each change of augmentation, and its share of the training step
    python scripts/benchmark.py --mode made                       scans made from label maps, and their share of the training step
    python scripts/benchmark.py --mode conv --against monai       one 3-D convolution: ours, XLA's own and PyTorch's
    python scripts/benchmark.py --mode attention                  our attention against jax.nn.dot_product_attention
    python scripts/benchmark.py --mode cache                      ways to keep a standardised volume

The first four (compute, e2e, loader, profile) take any config, `--preset configs/FILE.py:VARIANT --set KEY=VALUE`; compute and e2e run on
GPUs if there are any, the others on the CPU. For Linux; the peer needs the extra "benchmark".

Machines are shared and noisy, so contestants take turns, each turn in a fresh process, and medians and ratios are reported. On a CPU all
of them get the huge pages that the main command takes for itself; where it says "as installed", the peer runs as it does by itself.
`--out FILE.md` keeps the table, with FILE.json beside it, in place of what is there. What is measured stands in scripts/benchmarks/, a file
for each subject.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import attention, augmentation, cache, command, convolution, made, networks, presets, profile, volumes
from benchmarks.measure import Result

from brainseg_jax.core import runtime
from brainseg_jax.core.errors import InputError, exit_code

MODES: dict[str, Callable[[argparse.Namespace], tuple[str, Any]]] = {
    "networks": networks.networks,
    "volumes": volumes.volumes,
    "predict": command.predict,
    "augment": augmentation.augment,
    "made": made.made,
    "conv": convolution.conv,
    "attention": attention.attention,
    "cache": cache.cache,
}
WORKERS: dict[str, Callable[..., Result]] = {
    **networks.WORKERS,
    **volumes.WORKERS,
    **augmentation.WORKERS,
    **made.WORKERS,
    **convolution.WORKERS,
    **presets.WORKERS,
    **profile.WORKERS,
}
OF_PRESETS = {"compute": presets.compute, "e2e": presets.e2e, "loader": presets.loader, "profile": profile.profile}
WITH_PEER = ("compute", "networks", "volumes", "conv")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices={**MODES, **OF_PRESETS}, default="compute")
    parser.add_argument("--preset", action="append", metavar="FILE.py:VARIANT", help="a config, as it trains; else all full-size networks")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change of the presets' values")
    parser.add_argument("--against", choices=("monai",), help="also measure the peer")
    parser.add_argument("--steps", type=int, default=12, help="timed steps in each turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each contestant (%(default)s)")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode not in OF_PRESETS:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the peer runs there, and memory is read there
    return exit_code(lambda: work(args) if args.worker else measure(args))


def work(args: argparse.Namespace) -> int:
    """What one contestant found, for the process that asked."""
    print(json.dumps(WORKERS[args.worker](args.steps, *([args.folder] if args.folder else []))))
    return 0


def check(args: argparse.Namespace) -> None:
    """InputError for what could not be measured or kept, before anything is measured."""
    if (args.preset or args.set) and args.mode not in OF_PRESETS:
        raise InputError(f"--mode {args.mode} takes no --preset and no --set; {', '.join(OF_PRESETS)} do")
    if args.against and args.mode not in WITH_PEER:
        raise InputError(f"--mode {args.mode} has no peer; leave out --against, which is for {', '.join(WITH_PEER)}")
    if args.steps < 1 or args.turns < 1:
        raise InputError("--steps and --turns have to be 1 or more")
    absent = [name for name in ("torch", "monai") if args.against and not importlib.util.find_spec(name)]
    if absent:
        raise InputError(f'{absent[0]} is not installed; pip install -e ".[benchmark]", or leave out --against')
    if args.mode in OF_PRESETS:
        presets.check_all(args)
    if args.out:
        if args.out.suffix != ".md":
            raise InputError(f"--out {args.out}: give a Markdown file, FILE.md; FILE.json is written beside it")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        for file in (args.out, args.out.with_suffix(".json")):
            file.open("a").close()


def measure(args: argparse.Namespace) -> int:
    """Measures, prints the table and keeps it."""
    check(args)
    table, results = {**MODES, **OF_PRESETS}[args.mode](args)
    from brainseg_jax.training import run_records

    environment = run_records.environment()
    machine = environment["machine"]
    jax_version, commit = environment["packages"]["jax"], environment["commit"][:12]
    text = (
        f"{table}\n\n{machine['processor']}, {machine['cores']} cores; JAX {jax_version}; commit {commit}; `{' '.join(shown(sys.argv))}`\n"
    )
    print(text)
    if args.out:
        args.out.write_text(text)
        args.out.with_suffix(".json").write_text(json.dumps({"results": results, "environment": environment}, indent=1) + "\n")
    return 0


def shown(argv: list[str]) -> list[str]:
    """The command as a reader would type it, without the place of the output."""
    words, kept = iter(argv[1:]), ["python", "scripts/benchmark.py"]
    for word in words:
        if word == "--out":
            next(words, None)
        elif not word.startswith("--out="):
            kept.append(word)
    return kept


if __name__ == "__main__":
    runtime.with_huge_pages()
    sys.exit(main())
