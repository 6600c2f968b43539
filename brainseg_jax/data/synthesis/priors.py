"""What tissues look like in one sequence, of a user's table: made scans that follow it look like that sequence's."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import parse_cells, read_table_text, split_rows
from brainseg_jax.data.labels import Table

COLUMNS = ("id", "mean", "mean_sd", "spread", "spread_sd")


class Prior(NamedTuple):
    """Of each tissue mean and standard deviation of its mean and of its spread, intensities in [0, 1]; NaN where nothing is known."""

    means: Float[np.ndarray, "2 t"]
    spreads: Float[np.ndarray, "2 t"]

    sha256: str = ""  # of the file's ids and numbers, wherever it lies and however they are written


def read_prior(path: Path, table: Table, of: Integer[np.ndarray, "k"]) -> Prior:
    """The prior of a tab-separated file with COLUMNS: ids of the table (a run's: head), 0 for the air; those left out look like anything.

    `of`: for each of the table's classes, background first, its tissue; ids of one tissue need one line. Raises InputError, naming the
    line, for whatever is wrong with it.
    """
    text = read_table_text(path, "check synth.prior.table", "tab-separated text")
    tissue = dict(zip([0, *(structure.id for structure in table.structures)], of.tolist(), strict=True))
    named: dict[int, list[float]] = {}  # by one id of each tissue, whatever other tissues the table has
    found = np.full((4, of.max() + 1), np.nan)
    for number, cells in parse_cells(str(path), split_rows(text), COLUMNS, COLUMNS, "\t", "tissues"):
        where = f"{path}: line {number}"
        id, values = _numbers([*cells.values()], where)
        if id not in tissue:
            raise InputError(f"{where}: label table {table.name} does not have {id:g}; leave the line out")
        there = found[:, tissue[id]]
        if not np.isnan(there).all() and (there != values).any():
            raise InputError(
                f"{where}: {id:g} looks otherwise than in an earlier line of its tissue, its own or its other side's; give one"
            )
        found[:, tissue[id]] = values
        named[min(other for other, of in tissue.items() if of == tissue[id])] = values
    return Prior(found[:2], found[2:], hashlib.sha256(json.dumps(sorted(named.items())).encode()).hexdigest())


def _numbers(cells: list[str], where: str) -> tuple[float, list[float]]:
    """The id of a line, and its four values."""
    try:
        id, *values = (float(cell) + 0.0 for cell in cells)  # -0 is 0
    except ValueError:
        raise InputError(f"{where}: {', '.join(cells)} are not all numbers; give {', '.join(COLUMNS)}") from None
    if not all(0 <= value <= 1 for value in values):
        raise InputError(f"{where}: {', '.join(cells)}; give an id and four numbers from 0 to 1, intensities scaled as those of scans are")
    return id, values
