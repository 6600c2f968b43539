"""`brainseg evaluate --pred PRED --ref REF --o table.tsv`: scores label maps of any tool against references or, with
`--checkpoint C --manifest M`, those that a checkpoint predicts for the scans of a split, on each scan's own grid.

A pair that cannot be scored is listed at the end, the others are scored, and the exit code is 3.
"""

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from brainseg_jax.cli.arguments import Parser, path_ending
from brainseg_jax.core import runtime
from brainseg_jax.core.errors import InputError, exit_code, exit_process, first_few, one_line, warnings
from brainseg_jax.core.files import check_own, check_place
from brainseg_jax.data.dataset import read_for
from brainseg_jax.data.labels import SCHEMES, read_table
from brainseg_jax.data.layouts import stem
from brainseg_jax.data.manifest import Row, apply_splits, read_manifest
from brainseg_jax.evaluation.metrics import METRICS
from brainseg_jax.evaluation.pairs import Pair, pair, read_pairs
from brainseg_jax.evaluation.score_table import COLUMNS, remarks, summary, write_scores
from brainseg_jax.evaluation.scoring import Comparison, Judged, comparison, score_files, score_scan

OF_FILES = ("pred", "ref", "pairs", "pred_scheme", "ref_scheme", "subject_regex", "partial")  # flags for existing label maps
OF_CHECKPOINT = ("manifest", "split", "splits", "tta")  # flags for a checkpoint's predictions


def main(argv: list[str] | None = None) -> int:
    """The command's exit code: 0, 3 if some pairs could not be scored, 130 for Ctrl-C, or 2 after one line on a user error."""
    return exit_code(lambda: evaluate(_parser().parse_args(argv)))


def evaluate(options: argparse.Namespace) -> int:
    """Scores every pair, writes the table, and prints means, definitions and failures. Returns the exit code."""
    check_place(options.o)
    check_own(f"--o {options.o}", options.o, "table", "\t".join(COLUMNS))
    refuse_other_flags(options)
    tables, jobs, notes = (of_checkpoint if options.checkpoint else of_files)(options)
    console = Console(highlight=False, width=max(120, shutil.get_terminal_size().columns))
    results, failures, notices = {}, [], []
    try:
        for subject, job in track(jobs.items(), "scoring", console=console, transient=True, disable=not console.is_terminal):
            try:
                results[subject], noticed = job()
                notices += noticed
            except Exception as error:
                failures.append(f"{subject}: {one_line('the pair', error)}")
    except KeyboardInterrupt:
        if results:
            write_scores(options.o, tables, results)
        print(f"stopped; {f'{options.o} holds {len(results)}' if results else 'none'} of {len(jobs)} pairs", file=sys.stderr)
        return 130
    if not results:
        raise InputError(f"none of {len(jobs)} pairs could be scored; the first, {failures[0]}")
    write_scores(options.o, tables, results)
    console.print(summary(tables, results))
    lines = [*remarks(tables, results, options.tolerance), *notes, *warnings(notices)]
    if failures:
        lines += ["", f"{len(failures)} of {len(jobs)} pairs could not be scored:", *failures]
    lines += ["", f"{options.o}: written, {len(results)} subject{'s' * (len(results) > 1)}"]
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    return 3 if failures else 0


# Label tables, a function that scores each scan, and lines to print at the end.
Work = tuple[Comparison, dict[str, Callable[[], Judged]], list[str]]


def refuse_other_flags(options: argparse.Namespace) -> None:
    """Raises InputError for flags of the other mode (files or checkpoint), which would have no effect."""
    own, others = ("with", OF_FILES) if options.checkpoint else ("without", OF_CHECKPOINT)
    if given := [f"--{name.replace('_', '-')}" for name in others if getattr(options, name)]:
        whose = "the manifest names references and their schemes" if options.checkpoint else "they say what a checkpoint segments"
        raise InputError(f"{', '.join(given)}: of no use {own} --checkpoint, {whose}; leave out")


def of_files(options: argparse.Namespace) -> Work:
    """Pairs of existing label maps."""
    schemes = (options.pred_scheme or "freesurfer", options.ref_scheme or "freesurfer")
    tables = comparison(*schemes, options.labels or "seg33", options.exclude)
    pairs, alone = _pairs(options)
    notes = ["", f"{len(alone)} files have no partner and were left out:", *map(str, alone)] if alone else []
    jobs = {scan.subject: partial(score_files, scan, tables, options.metrics, options.tolerance) for scan in pairs}
    return tables, jobs, notes


def of_checkpoint(options: argparse.Namespace) -> Work:
    """The labelled scans of a manifest's split, segmented by a checkpoint or an ensemble."""
    runtime.for_prediction()
    from brainseg_jax.inference.predictor import predictor  # lazily: only this mode needs JAX, which reads its settings when imported

    if not options.manifest:
        raise InputError("--manifest is missing: the scans to segment, with labels and splits, e.g. the one that was trained on")
    rows = read_manifest(options.manifest)
    rows = apply_splits(rows, options.splits) if options.splits else rows
    split = options.split or "test"
    labelled = [row for row in rows if row.split == split and row.labels]
    chosen = [row for row in labelled if not row.labels_only]
    if labelled and not chosen:
        raise InputError(f"{options.manifest}: all labels of split {split!r} are without an image to segment; choose another --split")
    if not chosen:
        remedy = "give the run folder's split.tsv as --splits" if not any(row.split for row in rows) else "choose another --split"
        raise InputError(f"{options.manifest}: no scan of split {split!r} has labels; {remedy}")
    by = predictor([name for name in options.checkpoint.split(",") if name])
    by.check_images(len(rows[0].images), str(options.manifest))
    by = by.with_flip() if options.tta else by
    target = read_table(options.labels) if options.labels else by.table
    chosen = [read_for(row, target, "background") for row in chosen]
    sides = "the checkpoint's table", "the manifest's scheme"
    schemes = {row.scheme[0]: comparison(by.table, row.scheme[0], target, options.exclude, sides) for row in chosen}
    measured = options.metrics, options.tolerance
    jobs = {name: partial(score_scan, by, row, schemes[row.scheme[0]], *measured) for name, row in named(chosen).items()}
    notes = ["", seen_in_training(by.trained_on(), chosen)]
    if without_image := len(labelled) - len(chosen):
        notes.append(f"left out: {without_image} label map{'s' * (without_image > 1)} without an image to segment")
    if split == "val":
        notes.append("note: by the people of split val the best checkpoint is chosen, which flatters it; for a report use test")
    return next(iter(schemes.values())), jobs, notes


def named(rows: Sequence[Row]) -> dict[str, Row]:
    """Rows by their name in the table: subject, session and file, or the whole key where two rows would have the same name."""
    short = ["_".join(filter(None, (row.subject, row.session, stem(row.image)))) for row in rows]
    count = Counter(short)
    return {name if count[name] == 1 else "/".join(filter(None, row.key)): row for name, row in zip(short, rows, strict=True)}


def seen_in_training(trained_on: set[str], rows: Sequence[Row]) -> str:
    """A line on how many of the subjects the networks were trained on, compared by data set and subject name."""
    if not trained_on:
        return "the checkpoint does not say whom it was trained on"
    subjects = {row.person: row.hashed in trained_on for row in rows}
    known = sorted(name for (_, name), seen in subjects.items() if seen)
    return (
        f"{len(known)} of {len(subjects)} people were in the training data of the checkpoint or of what it began with"
        f"{f': {first_few(known)}' if known else ''} (told by the manifest's dataset and subject)"
    )


def _pairs(options: argparse.Namespace) -> tuple[list[Pair], list[Path]]:
    if options.pairs and (options.pred or options.ref):
        raise InputError("--pairs: lists both sides; leave --pred and --ref out")
    if options.pairs:
        return read_pairs(options.pairs), []
    if not (options.pred and options.ref):
        raise InputError("--pred and --ref are both needed, two files or two folders; or a list, --pairs")
    pairs, alone = pair(options.pred, options.ref, options.subject_regex)
    if alone and not options.partial:
        raise InputError(f"{len(alone)} files have no partner: {first_few(alone)}; add --partial to leave them out")
    return pairs, alone


def _metrics(text: str) -> tuple[str, ...]:
    wanted = [name.strip().lower() for name in text.split(",")]
    if unknown := [name for name in wanted if name not in METRICS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown, known are {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name in wanted)


def _tolerance(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < np.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no distance; give millimetres above 0, e.g. 1")


def _parser() -> argparse.ArgumentParser:
    parser = Parser("brainseg evaluate", description="Scores label maps against references.", allow_abbrev=False)
    parser.add_argument("--pred", type=Path, help="the predicted label map (.nii, .nii.gz, .mgz), or a folder of them")
    parser.add_argument("--ref", type=Path, help="the reference, or a folder of them; the files of two folders pair up by name")
    parser.add_argument("--pairs", type=Path, metavar="CSV", help="instead of both, a table with the columns subject, pred and ref")
    table = path_ending(".tsv", kind="a table")
    parser.add_argument("--o", type=table, required=True, metavar="TSV", help="the table to write, one line per subject and structure")
    tables = f"{', '.join(SCHEMES)}, or a .tsv file"
    parser.add_argument("--pred-scheme", metavar="TABLE", help=f"the label table of the predictions: {tables} (freesurfer)")
    parser.add_argument("--ref-scheme", metavar="TABLE", help="the label table of the references (freesurfer)")
    parser.add_argument("--labels", metavar="TABLE", help="the label table in which both are compared (seg33, or the checkpoint's own)")
    parser.add_argument("--exclude", default="", metavar="IDS", help="structures of that table to exclude: ids, names or abbreviations")
    parser.add_argument("--metrics", type=_metrics, default=METRICS, metavar="NAMES", help=f"any of {','.join(METRICS)} (all)")
    parser.add_argument("--tolerance", type=_tolerance, default=1.0, metavar="MM", help="tolerance of nsd (%(default)s)")
    parser.add_argument("--subject-regex", default="", help="its first group is the subject in paths below both folders")
    parser.add_argument("--checkpoint", default="", metavar="FOLDERS", help="segment with this checkpoint, or an ensemble (with commas)")
    parser.add_argument("--tta", action="store_true", help="with --checkpoint: test-time augmentation by left-right flips")
    parser.add_argument("--manifest", type=Path, help="with --checkpoint: the scans, their labels and splits")
    parser.add_argument("--split", help="with --checkpoint: the split to score (test)")
    parser.add_argument("--splits", type=Path, metavar="TSV", help="with --checkpoint: a run's split.tsv, where the manifest has no splits")
    parser.add_argument("--partial", action="store_true", help="leave out files without a partner, and list them")
    return parser


def command() -> None:
    """Entry point."""
    exit_process(main())
