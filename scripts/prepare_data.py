"""Prepares data for training: `manifest` turns a data set's folder into a manifest with splits, `cache` standardises its scans ahead.

Training does the second by itself; on a cluster it is worth doing before, on a machine without a GPU.
"""

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

from brainseg_jax import record
from brainseg_jax.data.cache import VOLUMES, build, write_failures
from brainseg_jax.data.makers import MAKERS
from brainseg_jax.data.manifest import FRACTIONS, SPLITS, Row, assign_splits, read_manifest, write_manifest, write_splits
from brainseg_jax.data.standardize import spec
from brainseg_jax.errors import InputError
from brainseg_jax.runtime import cache_folder


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_manifest(commands)
    add_cache(commands)
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


def add_cache(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("cache", help="standardise a manifest's scans ahead of training")
    command.set_defaults(run=cache)
    command.add_argument("manifest", metavar="MANIFEST", type=Path)
    command.add_argument("--cache", type=Path, default=cache_folder(), help="the folder for standardised volumes (%(default)s)")
    command.add_argument("--spec", choices=("default", "paper"), default="default", help="of standardisation (%(default)s)")
    command.add_argument("--spacing", type=float, default=1.0, help="mm (%(default)s)")
    command.add_argument("--size", type=int, nargs=3, default=(192, 192, 192), metavar=("X", "Y", "Z"), help="voxels (192 192 192)")
    command.add_argument("--dtype", choices=("uint8", "float16"), default="uint8", help="(%(default)s)")
    command.add_argument("--labels", action="store_true", help="for fine-tuning: the labels too (pretraining does not read them)")
    command.add_argument("--workers", type=int, help="processes (by default one for each core)")


def cache(args: argparse.Namespace) -> None:
    """Standardises every scan that the cache lacks; those that cannot be used go into STEM_failures.csv beside the manifest."""
    rows = read_manifest(args.manifest)
    if not args.labels:
        rows = tuple(row._replace(labels=(), scheme=()) for row in rows)
    chosen = spec(args.spec, args.spacing, args.size, args.dtype)
    entries, failures = build(
        rows, chosen, args.cache / VOLUMES, max_failures=1.0, workers=args.workers, progress=record.progress("standardising scans")
    )
    print(f"{len(entries)} of {len(rows)} scans are ready in {args.cache}")
    if failures:
        beside = args.manifest.with_name(f"{args.manifest.stem}_failures.csv")
        write_failures(beside, failures)
        print(f"{len(failures)} cannot be used, reasons in {beside}; the first: {failures[0].reason}")


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
