"""Scores of a pair of label maps, both grouped into one label table, so that any tool's output can be compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brainseg_jax.core.errors import InputError, did_you_mean, first_few
from brainseg_jax.data.labels import Table, lookup, missing, read_table, voxel_ids
from brainseg_jax.data.manifest import Row
from brainseg_jax.data.nifti import Scan, read, read_labels
from brainseg_jax.data.preprocess import on_grid
from brainseg_jax.evaluation.metrics import METRICS, PerClass, score
from brainseg_jax.evaluation.pairs import Pair

Scores = dict[str, PerClass]  # of one pair, from `metrics.score`


class Comparison(NamedTuple):
    """The label tables of both sides, the table in which they are compared, and its classes to report: 0, then structures."""

    prediction: Table
    reference: Table
    target: Table
    reported: tuple[int, ...]


# The scores of a pair, and remarks on how its files were read.
Judged = tuple[Scores, list[str]]


def comparison(
    prediction: str | Table,
    reference: str | Table,
    target: str | Table,
    exclude: str = "",
    called: tuple[str, str] = ("--pred-scheme", "--ref-scheme"),
) -> Comparison:
    """The comparison of two label tables in a third, given or by name. `exclude`: ids, names or abbreviations of structures of the target,
    separated by commas. `called`: names of the two sides in errors.

    Raises InputError for what is not in the target, and for structures that one side's table lacks and that are not excluded.
    """
    table = _table(target)
    number = {key.lower(): n for n, s in enumerate(table.structures, 1) for key in (s.abbreviation, s.name)}
    number |= {str(s.id): n for n, s in enumerate(table.structures, 1)}
    excluded = [key.strip() for key in exclude.split(",") if key.strip()]
    for key in excluded:
        if key.lower() not in number:
            raise InputError(
                f"--exclude: label table {table.name} has no {key!r}{did_you_mean(key, number)}; give its ids, names or abbreviations"
            )
    left_out = {number[key.lower()] for key in excluded}
    reported = tuple(n for n in range(len(table.structures) + 1) if n not in left_out)
    if len(reported) == 1:
        raise InputError(f"--exclude: nothing is left of label table {table.name}; exclude less")
    sides = []
    for side, source in zip(called, (_table(prediction), _table(reference)), strict=True):
        lacking = [s for s in missing(source, table) if number[str(s.id)] in reported]
        if len(lacking) == len(reported) - 1:
            raise InputError(f"{side} {source.name} has nothing of what is compared, {table.name}; choose other --labels")
        if lacking:
            remedy = f"leave out what cannot be compared with --exclude {','.join([*excluded, *(str(s.id) for s in lacking)])}"
            raise InputError(f"{side} {source.name} has no {first_few((s.name for s in lacking), 4)}; {remedy}, or choose other --labels")
        sides.append(source)
    return Comparison(*sides, table, reported)


def _table(named: str | Table) -> Table:
    return named if isinstance(named, Table) else read_table(named)


def score_files(scan: Pair, tables: Comparison, metrics: Sequence[str] = METRICS, tolerance: float = 1.0) -> Judged:
    """The scores of two files. Raises InputError for files that cannot be read, ids that their table lacks, and different grids."""
    reference, prediction = read_labels(scan.reference), read_labels(scan.prediction)
    ids = on_grid(prediction, reference.voxels.shape, reference.affine, str(scan.prediction), "reference")
    predicted = lookup(ids, tables.prediction, tables.target, str(scan.prediction))
    expected = lookup(reference.voxels, tables.reference, tables.target, str(scan.reference))
    spacing = tuple(np.linalg.norm(reference.affine[:3, :3], axis=0).tolist())
    scores = score(predicted, expected, len(tables.target.structures) + 1, spacing, metrics, tolerance)
    return scores, summary_line({scan.prediction: prediction, scan.reference: reference})


def score_scan(by: Any, row: Row, tables: Comparison, metrics: Sequence[str] = METRICS, tolerance: float = 1.0) -> Judged:
    """The scores of a subject's scan, segmented by the predictor `by`, on its own grid. Raises InputError for files that cannot be read."""
    from brainseg_jax.inference.segmentation import prepare, segment

    scans, reference = {path: read(path) for path in row.images}, read_labels(row.labels[0])
    first = scans[row.image]
    labels = on_grid(reference, first.voxels.shape, first.affine, str(row.labels[0]))
    ids = voxel_ids(by.table)[segment(by, prepare(by, list(scans.values()), list(map(str, scans)))).classes]
    predicted = lookup(ids, tables.prediction, tables.target, str(row.image))
    expected = lookup(labels, tables.reference, tables.target, str(row.labels[0]))
    spacing = tuple(np.linalg.norm(first.affine[:3, :3], axis=0).tolist())
    scores = score(predicted, expected, len(tables.target.structures) + 1, spacing, metrics, tolerance)
    return scores, summary_line(scans | {row.labels[0]: reference})


def summary_line(scans: dict[Path, Scan]) -> list[str]:
    """Remarks on how files were read, a line each."""
    return [f"{path}: {remark}" for path, scan in scans.items() for remark in scan.remarks]
