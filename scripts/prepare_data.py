"""Prepares data for training: `manifest` turns a data set's folder into a manifest with splits, and prints what it found."""

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

from brainseg_jax.data.makers import MAKERS
from brainseg_jax.data.manifest import FRACTIONS, SPLITS, Row, assign_splits, write_manifest, write_splits
from brainseg_jax.errors import InputError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_manifest(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def add_manifest(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("manifest", help="a data set's folder becomes a manifest with splits")
    command.set_defaults(run=manifest)
    command.add_argument("layout", choices=MAKERS, help="how the folder is laid out")
    command.add_argument("root", metavar="ROOT", type=Path, help="the data set's folder")
    command.add_argument("--out", required=True, type=Path, help="the manifest to write, e.g. people.tsv")
    command.add_argument("--labels", type=Path, help="the folder of label maps, where they lie apart")
    command.add_argument("--scheme", help="the labels' scheme, for bids and folder, e.g. freesurfer")
    command.add_argument("--dataset", help="the data set's name, instead of the layout's")
    command.add_argument("--subject-regex", help="for folder: finds the subject in a scan's path, in its first group")
    command.add_argument("--split", choices=[*FRACTIONS, "none"], default="subject", help="divide people, or images as in the paper")
    command.add_argument("--seed", type=int, default=0, help="of the split (%(default)s)")
    command.add_argument("--fractions", type=float, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="of the split, e.g. 0.8 0.1 0.1")


def manifest(args: argparse.Namespace) -> None:
    """Writes the manifest, and beside it STEM_split.tsv, whose hash says which split it is; prints a table and the next command."""
    given = {"labels": args.labels, "scheme": args.scheme, "dataset": args.dataset, "subject_regex": args.subject_regex}
    given = {name: value for name, value in given.items() if value is not None}
    maker = MAKERS[args.layout]
    for name in given.keys() - inspect.signature(maker).parameters.keys():
        raise InputError(f"--{name.replace('_', '-')}: the layout {args.layout} has no use for it; leave it out")
    rows = maker(args.root, **given)
    if args.split != "none":
        rows = assign_splits(rows, seed=args.seed, fractions=args.fractions, rule=args.split)
    write_manifest(args.out, rows)
    print(table(rows))
    if args.split != "none":
        beside = args.out.with_name(f"{args.out.stem}_split.tsv")
        print(f"\nsplit {beside}, sha256 {write_splits(beside, rows)}")
    print(f"\nnext: python -m brainseg_jax.main --config=configs/pretrain_vit.py:full --config.data.manifest={args.out}")


def table(rows: Sequence[Row]) -> str:
    """People, images and images with labels, one line for each dataset and split."""
    groups = sorted({(row.dataset, row.split) for row in rows}, key=lambda group: (group[0], SPLITS.index(group[1])))
    lines = [("dataset", "split", "subjects", "images", "with labels")]
    for group in groups:
        members = [row for row in rows if (row.dataset, row.split) == group]
        counts = len({row.person for row in members}), len(members), sum(bool(row.labels) for row in members)
        lines.append((group[0], group[1] or "none", *map(str, counts)))
    return "\n".join("  ".join(f"{cell:<12}" if i < 2 else f"{cell:>11}" for i, cell in enumerate(line)) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
