"""`brainseg convert IN OUT`: conversion of weights between PyTorch's files and our checkpoints, in the direction given by IN and OUT.

A file (.pt, .pth, .safetensors) becomes a checkpoint, a folder for `brainseg_jax.load`. A checkpoint becomes a .safetensors file with
MONAI's keys, or those of the paper's code. The kind of file is detected by its keys; settings that it does not show are flags. Every key is
accounted for, and one without use is an error unless --partial. Weights are never changed without a --to- flag.
"""

import argparse
from pathlib import Path

from brainseg_jax.cli.arguments import Parser
from brainseg_jax.core.errors import InputError, exit_code, exit_process
from brainseg_jax.core.files import check_place
from converters import certify
from converters.incoming import convert_file
from converters.outgoing import convert_checkpoint
from converters.rules import release
from converters.source import DIALECTS


def main(argv: list[str] | None = None) -> int:
    """Converts by the command line, prints a report, and returns the exit code: 2 for a user error, which is one line on stderr."""
    return exit_code(lambda: convert(_parser().parse_args(argv)))


def convert(options: argparse.Namespace) -> int:
    """Converts, with --certify compares with MONAI, and prints a report."""
    options.monai = release(options.monai) if options.monai else ""
    if not options.source.exists():
        raise InputError(f"{options.source}: no such file or folder; check the path")
    check_place(options.out)
    if options.certify:
        certify.places(options.out)
    from brainseg_jax.weights import single_file  # imports JAX, so after the checks

    ours = options.source.is_dir() or single_file.is_network(options.source)
    config, leaves, tensors, dialect, facts, report = convert_checkpoint(options) if ours else convert_file(options)
    print("\n".join(report))
    if options.certify:
        print("\n".join(certify.write(options.out, config, leaves, tensors, dialect, facts)))
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 9999:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 9999")
    return int(text)


def _crop(text: str) -> tuple[int, int, int]:
    sides = text.split(",")
    if len(sides) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers of voxels, such as 96,96,96")
    x, y, z = map(_positive, sides)
    if max(x, y, z) > 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no crop; sides are 1024 voxels at most")
    return x, y, z


def _parser() -> argparse.ArgumentParser:
    parser = Parser("brainseg convert", description="Weights between PyTorch's files and our checkpoints.", allow_abbrev=False)
    parser.add_argument("source", metavar="IN", type=Path, help="a .pt, .pth or .safetensors file, or a checkpoint of ours")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder, or the .safetensors file, to write")
    parser.add_argument("--dialect", default="", choices=[d.name for d in DIALECTS], help="the kind of file, where it is not detected")
    merges = ("legacy", "merging", "mergingv2")
    several = "which of several sets of weights of a file, by the name of its key, e.g. state_dict_ema"
    parser.add_argument("--weights", default="", metavar="NAME", help=several)
    parser.add_argument("--merge", default="", choices=merges, help="a Swin's order of patch merging: the file's, or the one to write")
    parser.add_argument("--monai", default="", help="the version that a file was trained with, or that it is written for (default 1.6)")
    parser.add_argument(
        "--crop", type=_crop, metavar="X,Y,Z", help="the crop of a file: a ViT's where it is no cube, a Swin's if not 96,96,96"
    )
    parser.add_argument("--heads", type=_positive, help="attention heads of a ViT file (default 12): weights do not show them")
    parser.add_argument("--to-channels", type=_positive, metavar="N", help="change the network for images of N channels")
    parser.add_argument("--to-classes", type=_positive, metavar="N", help="change it for N classes: the head is left out")
    parser.add_argument("--to-crop", type=_crop, metavar="X,Y,Z", help="change it for another crop: a ViT's positions are interpolated")
    parser.add_argument("--partial", action="store_true", help="convert what there is, and list what is left out or missing")
    parser.add_argument("--certify", action="store_true", help="compare with MONAI, if installed; write a certificate beside OUT")
    parser.add_argument("--force", action="store_true", help="replace an existing .safetensors file")
    return parser


def command() -> None:
    """Runs the command and exits."""
    exit_process(main())


if __name__ == "__main__":
    command()
