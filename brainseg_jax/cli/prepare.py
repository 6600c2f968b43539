"""Prepares data for training: `manifest` turns a data set's folder into a manifest with splits, `cache` standardises its scans.

Training standardises by itself; on a cluster it saves GPU time to do it before, on a machine without a GPU.
"""

import argparse
import filecmp
import inspect
import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from brainseg_jax.cli.arguments import Parser
from brainseg_jax.config.recipes import TASKS
from brainseg_jax.core import progress
from brainseg_jax.core.errors import InputError, exit_code, exit_process, first_few, warnings
from brainseg_jax.core.files import atomic_write, check_place
from brainseg_jax.core.runtime import cache_folder
from brainseg_jax.data.cache import VOLUMES, build, remarks, write_failures
from brainseg_jax.data.dataset import check_learned, read_for
from brainseg_jax.data.labels import SCHEMES, read_table
from brainseg_jax.data.layouts import LAYOUTS, enhanced, stem, volumes
from brainseg_jax.data.leakage import check_leakage
from brainseg_jax.data.manifest import FRACTIONS, SPLITS, Row, assign_splits, check_rows, read_manifest, write_manifest, write_splits
from brainseg_jax.data.preprocess import spec

LACKING = "no labels in split"
TABLES = f"one of {', '.join(SCHEMES)}, or a .tsv file of yours"


def main(argv: list[str] | None = None) -> int:
    """The command's exit code: 0, 3 if some scans cannot be used, or 2 after one line on a user error."""
    return exit_code(lambda: run(argv), "stopped; the same command goes on from there")


def run(argv: list[str] | None) -> int:
    """Parses the command line and runs its subcommand."""
    parser = Parser("brainseg prepare", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_manifest(commands)
    add_cache(commands)
    args = parser.parse_args(argv)
    return args.run(args) or 0


# ---- manifest


def add_manifest(commands: argparse._SubParsersAction) -> None:
    """The flags of `manifest`."""
    command = commands.add_parser("manifest", help="write the manifest of a data set's folder, with splits", allow_abbrev=False)
    command.set_defaults(run=manifest)
    command.add_argument("layout", choices=LAYOUTS, help="the folder's layout")
    command.add_argument("root", metavar="ROOT", type=Path, help="the data set's folder")
    command.add_argument("--out", required=True, type=Path, help="the manifest to write, e.g. people.tsv")
    command.add_argument("--labels", type=Path, help="the folder of label maps, if it is another one")
    command.add_argument("--scheme", help=f"the labels' scheme (label table), for bids and folder: {TABLES}")
    command.add_argument("--dataset", help="the data set's name, instead of the layout's")
    command.add_argument("--contrast-enhanced", action="store_true", default=None, help="for bids: include scans after a contrast agent")
    command.add_argument("--subject-regex", help="for folder: its first group is the subject in the path of an image or a label map")
    command.add_argument("--split", choices=[*FRACTIONS, "none"], default="subject", help="split by subject, or by image as in the paper")
    command.add_argument("--seed", type=int, help="seed of the split (0)")
    command.add_argument("--fractions", type=float, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="its fractions, e.g. 0.8 0.1 0.1")
    command.add_argument("--force", action="store_true", help="overwrite existing files")


def manifest(args: argparse.Namespace) -> None:
    """Writes the manifest and STEM_split.tsv, whose hash identifies the split; prints a table and the next command."""
    check_flags(args)
    if args.scheme and args.scheme not in SCHEMES:
        args.scheme = str(Path(args.scheme).absolute())  # paths in a manifest are relative to its own folder
    parameters = [name for name in inspect.signature(LAYOUTS[args.layout]).parameters if name != "root"]
    rows = LAYOUTS[args.layout](args.root, **{name: value for name in parameters if (value := getattr(args, name)) is not None})
    if args.split != "none":
        rows = assign_splits(rows, seed=args.seed or 0, fractions=args.fractions, rule=args.split)
    check_rows(rows, args.root)
    leaking = warnings(check_leakage(rows, args.root))
    written = write(args.out, rows, args.split != "none", args.force)
    remarks = remarked(rows, args)
    next_ = [] if any(line.startswith(LACKING) for line in remarks) else ["", f"next: {following(rows, args.out)}"]
    print("\n".join([table(rows), *remarks, *[""] * bool(leaking), *leaking, "", *written, *next_]))


def check_flags(args: argparse.Namespace) -> None:
    """Raises InputError for a flag without effect, a missing or unknown scheme, and an --out that cannot be a table."""
    takes = inspect.signature(LAYOUTS[args.layout]).parameters
    for name in ("labels", "scheme", "dataset", "subject_regex", "contrast_enhanced"):
        if getattr(args, name) is not None and name not in takes:
            raise InputError(f"--{name.replace('_', '-')}: the layout {args.layout} has no use for it; leave it out")
    for name in ("seed", "fractions"):
        if getattr(args, name) is not None and args.split == "none":
            raise InputError(f"--{name}: without a split there is no use for it; leave it or --split none out")
    if args.scheme and not args.labels:
        raise InputError("--scheme: says what the values of label maps mean, and is without use alone; give --labels too, or leave it out")
    if args.labels and "scheme" in takes and not args.scheme:
        raise InputError(f"--labels: small integers do not say what they mean; give --scheme too, {TABLES}")
    if args.scheme:
        read_table(args.scheme)
    if args.out.is_dir():
        raise InputError(f"--out {args.out}: is a folder; give a file's name in it, e.g. {args.out / 'people.tsv'}")
    if args.out.suffix != ".tsv":
        raise InputError(f"--out {args.out}: a manifest is a tab-separated table; give a name that ends in .tsv")
    check_place(args.out)


def write(out: Path, rows: Sequence[Row], split: bool, force: bool) -> list[str]:
    """Writes the manifest and the split, both or none, and returns a line on each.

    Raises InputError, unless `force`, for an existing file with other content, which may have been edited.
    """
    split_file = out.with_name(f"{out.stem}_split.tsv")
    lines = []
    with ExitStack() as stack:
        parts = {path: stack.enter_context(atomic_write(path)) for path in ((out, split_file) if split else (out,))}
        write_manifest(parts[out], rows)
        digest = f", sha256 {write_splits(parts[split_file], rows)}" if split else ""
        for path, part in parts.items():
            same = path.is_file() and filecmp.cmp(path, part, shallow=False)
            if path.exists() and not same and not force:
                raise InputError(f"{path}: is there already with other content; write over it with --force, or give another --out")
            lines.append(f"{path}: {'was there already, the same' if same else 'written'}{digest * (path == split_file)}")
    return lines


def remarked(rows: Sequence[Row], args: argparse.Namespace) -> list[str]:
    """Lines on what may be unexpected: scans left out or not fetched, scans or splits without labels where others have them, and label
    files that belong to no scan."""
    lines = []
    if args.layout == "bids" and not args.contrast_enhanced and (left_out := enhanced(args.root)):
        skipped = f"{len(left_out)}, {listed(left_out, args.root)}"
        lines.append(f"contrast-enhanced scans left out: {skipped}; --contrast-enhanced takes them too")
    if absent := [path for row in rows for path in (*row.images, *row.labels) if not path.exists()]:
        lines.append(f"links to content that was not fetched (datalad get): {len(absent)}, {listed(absent, args.root)}")
    unlabelled = [row.image for row in rows if not row.labels]
    if unlabelled and len(unlabelled) < len(rows):
        counts = f"{len(unlabelled)} of {len(rows)}"
        lines.append(f"scans without a label, of use in pretraining only: {counts}, {listed(unlabelled, args.root)}")
    if args.labels:
        used = {path for row in rows for path in (row.image, *row.labels)}
        kind = "_dseg" if args.layout == "bids" else ""  # derivatives hold more than label maps
        files = volumes(Path(os.path.normpath(args.labels.absolute())))
        if unused := [path for path in files if path not in used and stem(path).endswith(kind)]:
            lines.append(f"label files of no scan: {len(unused)}, {listed(unused, args.labels)}")
    splits = {row.split for row in rows if row.labels}
    if splits and args.split != "none" and (lacking := [split for split in ("train", "val") if split not in splits]):
        lines.append(f"{LACKING} {lacking[0]}, without which there is no fine-tuning: try another --seed, or --fractions")
    return [""] * bool(lines) + lines


def listed(paths: Sequence[Path], root: Path) -> str:
    """The first few paths, relative to a folder, and the number of the others."""
    return first_few(os.path.relpath(path, root) for path in paths)


def following(rows: Sequence[Row], out: Path) -> str:
    """The command that trains with the manifest: fine-tuning where there are labels, for the first task that all their schemes serve."""
    by_scheme = {row.scheme: row for row in rows if row.labels}
    if not by_scheme:
        config = "configs/pretrain_vit.py:full"
    elif task := next((task for task in ("four", "skull") if all(serves(row, TASKS[task]) for row in by_scheme.values())), None):
        config = f"configs/finetune_swin_unetr.py:{task},full"
    else:
        (own, *_), *_ = by_scheme
        config = f"configs/finetune_swin_unetr.py:four,full --config.data.labels={shlex.quote(own)}"
    return f"brainseg train --config={config} --config.data.manifest={shlex.quote(str(out))}"


def serves(row: Row, task: str) -> bool:
    """Whether the row's labels can be used to fine-tune for the task."""
    try:
        read_for(row, read_table(task), "refuse")
    except InputError:
        return False
    return True


def table(rows: Sequence[Row]) -> str:
    """A table of subjects, images and labelled images, one line per dataset and split."""
    groups = sorted({(row.dataset, row.split) for row in rows}, key=lambda group: (group[0], SPLITS.index(group[1])))
    lines = [("dataset", "split", "subjects", "images", "with labels")]
    for group in groups:
        members = [row for row in rows if (row.dataset, row.split) == group]
        counts = len({row.person for row in members}), len(members), sum(bool(row.labels) for row in members)
        lines.append((group[0], group[1] or "none", *map(str, counts)))
    return "\n".join("  ".join(f"{cell:<12}" if i < 2 else f"{cell:>11}" for i, cell in enumerate(line)) for line in lines)


# ---- cache


def add_cache(commands: argparse._SubParsersAction) -> None:
    """The flags of `cache`."""
    command = commands.add_parser("cache", help="standardise a manifest's scans before training", allow_abbrev=False)
    command.set_defaults(run=cache)
    command.add_argument("manifest", metavar="MANIFEST", type=Path)
    command.add_argument("--cache", type=Path, default=cache_folder(), help="the folder for standardised volumes (%(default)s)")
    command.add_argument("--spec", choices=("default", "paper"), default="default", help="the standardisation (%(default)s)")
    command.add_argument("--spacing", type=float, default=1.0, help="voxel size in mm (%(default)s)")
    command.add_argument("--size", type=int, nargs=3, default=(192, 192, 192), metavar=("X", "Y", "Z"), help="in voxels (192 192 192)")
    command.add_argument("--dtype", choices=("uint8", "float16"), default="uint8", help="stored type (%(default)s)")
    tasks = ", ".join(f"{table} for {task}" for task, table in TASKS.items())
    command.add_argument("--labels", metavar="TABLE", help=f"for fine-tuning: its data.labels, {tasks}, or a .tsv file of yours")
    command.add_argument("--lacking", choices=("refuse", "background"), help="with --labels: its data.missing_labels (refuse)")
    command.add_argument("--workers", type=_positive, help="number of processes (one per core)")


def cache(args: argparse.Namespace) -> int:
    """Standardises every scan that the cache lacks, except excluded ones. Failures go into STEM_failures.csv beside the manifest.
    Returns 3 if there are any, else 0.

    With a task's label table it makes what fine-tuning reads: the labelled scans, with their labels as the task's classes. Training itself
    prepares label maps from which scans are synthesised.
    """
    if args.lacking and not args.labels:
        raise InputError("--lacking: is about labels; give --labels too, or leave it out")
    listed_scans = read_manifest(args.manifest)
    rows = [row for row in listed_scans if row.split != "excluded"]
    if not rows:
        scans = f"all {len(listed_scans)} scans are of split 'excluded'"
        raise InputError(f"{args.manifest}: {scans}, which is left out; give those to use another one")
    leaking = check_leakage(rows, args.manifest)
    rows = [row for row in rows if not row.labels_only]
    target = read_table(args.labels) if args.labels else None
    if target:
        if not any(row.labels for row in rows):
            remedy = "fill in its columns labels and scheme, or leave --labels out to make what pretraining reads"
            raise InputError(f"{args.manifest}: --labels standardises scans that have labels, and none of {len(rows)} has; {remedy}")
        check_learned(target)
        try:
            rows = [read_for(row, target, args.lacking or "refuse") for row in rows if row.labels]
        except InputError as refusal:
            raise InputError(str(refusal).replace("--config.data.missing_labels=", "--lacking ")) from None
    else:
        rows = [row._replace(labels=(), scheme=()) for row in rows]
    standard, folder = spec(args.spec, args.spacing, args.size, args.dtype), args.cache.expanduser() / VOLUMES
    show = progress.progress("standardising scans")
    entries, failures = build(rows, standard, folder, target=target, max_failures=1.0, workers=args.workers, progress=show)
    report = args.manifest.with_name(f"{args.manifest.stem}_failures.csv")
    report.unlink(missing_ok=True)  # of an earlier run
    if failures:
        write_failures(report, failures)
    if not entries:
        raise InputError(f"none of {len(rows)} scans can be used, reasons in {report}; the first: {failures[0].reason}")
    lines = [*warnings([*leaking, *remarks(entries, args.manifest)]), f"{len(entries)} of {len(rows)} scans are ready in {args.cache}"]
    if failures:
        lines += [f"{len(failures)} cannot be used, reasons in {report}; the first:", *(f.reason for f in failures[:3])]
    print("\n".join(lines))
    return 3 if failures else 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def command() -> None:
    """Entry point."""
    exit_process(main())
