"""Scores of many subjects: the table of all scores, the printed summary of means, and the remarks below it."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table as Grid
from rich.text import Text

from brainseg_jax.core.errors import first_few
from brainseg_jax.core.files import without_formulas, write_table
from brainseg_jax.data.labels import Table
from brainseg_jax.evaluation.metrics import METRICS, PerClass, definitions
from brainseg_jax.evaluation.scoring import Comparison, Scores

COLUMNS = ("subject", "structure", "id")  # of the table, before its numbers
DIGITS = {"dice": 3, "hd95": 2, "assd": 2, "nsd": 3}


def write_scores(file: Path, tables: Comparison, results: dict[str, Scores]) -> None:
    """Writes a line per subject and structure, atomically; a value that is not counted is an empty cell.

    Columns: subject, structure, id (of the target), the metrics, pred_ml, ref_ml, absent ("prediction", "reference", "both" or empty).
    """
    names = [*_measured(results), "pred_ml", "ref_ml"]
    lines = []
    for subject, scores in results.items():
        for n in tables.reported:
            numbers = ("" if np.isnan(scores[name][n]) else f"{scores[name][n]:.6g}" for name in names)
            lines.append((subject, *_called(tables.target, n), *numbers, _absent(scores, n)))
    write_table(file, (*COLUMNS, *names, "absent"), without_formulas(lines))


def summary(tables: Comparison, results: dict[str, Scores]) -> Grid:
    """The mean ± standard deviation over subjects of each structure, and of each subject's mean over structures."""
    names = _measured(results)
    grid = Grid(box=box.SIMPLE, pad_edge=False)
    grid.add_column("structure", no_wrap=True)
    for column in ("n", "missed", "extra", *names):
        grid.add_column(column, justify="right", no_wrap=True)
    for n in tables.reported:
        absent = Counter(_absent(scores, n) for scores in results.values())
        counts = (len(results) - absent["both"], absent["prediction"], absent["reference"])
        means = (_mean(name, [scores[name][n] for scores in results.values()]) for name in names)
        grid.add_row(Text(_called(tables.target, n)[0]), *map(str, counts), *means, end_section=n == tables.reported[-1])
    structures = list(tables.reported[1:])
    counted = sum(any(_absent(scores, n) != "both" for scores in results.values()) for n in structures)
    overall = {name: _mean(name, [_of_counted(scores[name][structures]) for scores in results.values()]) for name in names}
    grid.add_row(f"mean of {counted} structure{'s' * (counted != 1)}", "", "", "", *overall.values())
    if "dice" in names:
        dice = _mean("dice", [_of_counted(scores["dice"][[0, *structures]]) for scores in results.values()])
        grid.add_row("  and background", "", "", "", dice)
    return grid


def remarks(tables: Comparison, results: dict[str, Scores], tolerance: float = 1.0) -> list[str]:
    """Lines below the summary: definitions, structures left out, and structures that are absent throughout, by a wrong scheme perhaps."""
    structures = tables.target.structures
    lines = definitions(_measured(results), tolerance)
    lines.append("n: subjects where a structure counts; missed: the prediction lacks it; extra: the reference lacks it")
    lines.append("mean ± standard deviation over subjects; the mean of structures is first taken in each subject, over those that count")
    if left_out := [s.name for n, s in enumerate(structures, 1) if n not in tables.reported]:
        lines.append(f"left out: {', '.join(left_out)}; another structure that covers them is wrong there")
    for side, flag in (("prediction", "--pred-scheme"), ("reference", "--ref-scheme")):
        never = [structures[n - 1] for n in tables.reported[1:] if {_absent(scores, n) for scores in results.values()} == {side}]
        if never:
            remedy = f"if its tool has none, leave them out with --exclude {','.join(str(s.id) for s in never)}, or correct {flag}"
            lines.append(f"note: no {side} has {first_few((s.name for s in never), 4)}; {remedy}")
    return lines


def _measured(results: dict[str, Scores]) -> list[str]:
    return [name for name in METRICS if name in next(iter(results.values()))]


def _called(table: Table, n: int) -> tuple[str, str]:
    return (table.structures[n - 1].name, str(table.structures[n - 1].id)) if n else ("Background", "0")


def _absent(scores: Scores, n: int) -> str:
    lacking = [side for side, name in (("prediction", "pred_ml"), ("reference", "ref_ml")) if scores[name][n] == 0]
    return "both" if len(lacking) == 2 else "".join(lacking)


def _of_counted(values: PerClass) -> float:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else np.nan


def _mean(name: str, values: Iterable[float]) -> str:
    counted = [value for value in values if not np.isnan(value)]
    spread = f" ± {np.std(counted, ddof=1):.{DIGITS[name]}f}" if len(counted) > 1 else ""
    return f"{np.mean(counted):.{DIGITS[name]}f}{spread}" if counted else "–"
