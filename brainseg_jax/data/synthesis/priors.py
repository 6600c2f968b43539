"""Priors of tissue intensities in a sequence, from a user's table, for synthetic scans that look like that sequence."""

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
    """For each tissue, mean and standard deviation of its mean and of its spread, intensities in [0, 1]; NaN if unknown."""

    means: Float[np.ndarray, "2 t"]
    spreads: Float[np.ndarray, "2 t"]
    sha256: str = ""  # of the file's ids and numbers, independent of its path and formatting


def read_prior(path: Path, table: Table, of: Integer[np.ndarray, "k"]) -> Prior:
    """The prior of a tab-separated file with COLUMNS: ids of the table (a run's: head), 0 for air; tissues without a line are random.

    `of`: the tissue of each of the table's classes, background first; ids of one tissue need one line. Raises InputError, naming the line,
    for any fault.
    """
    text = read_table_text(path, "check synth.prior.table", "tab-separated text")
    tissue = dict(zip([0, *(structure.id for structure in table.structures)], of.tolist(), strict=True))
    named: dict[int, list[float]] = {}  # by the smallest id of each tissue
    moments = np.full((4, of.max() + 1), np.nan)
    for number, cells in parse_cells(str(path), split_rows(text), COLUMNS, COLUMNS, "\t", "tissues"):
        where = f"{path}: line {number}"
        id, values = _numbers([*cells.values()], where)
        if id not in tissue:
            raise InputError(f"{where}: label table {table.name} does not have {id:g}; leave the line out")
        earlier = moments[:, tissue[id]]
        if not np.isnan(earlier).all() and (earlier != values).any():
            raise InputError(
                f"{where}: {id:g} looks otherwise than in an earlier line of its tissue, its own or its other side's; give one"
            )
        moments[:, tissue[id]] = values
        named[min(other for other, of in tissue.items() if of == tissue[id])] = values
    return Prior(moments[:2], moments[2:], hashlib.sha256(json.dumps(sorted(named.items())).encode()).hexdigest())


def _numbers(cells: list[str], where: str) -> tuple[float, list[float]]:
    """The id of a line, and its four values."""
    try:
        id, *values = (float(cell) + 0.0 for cell in cells)  # -0 is 0
    except ValueError:
        raise InputError(f"{where}: {', '.join(cells)} are not all numbers; give {', '.join(COLUMNS)}") from None
    if not all(0 <= value <= 1 for value in values):
        raise InputError(f"{where}: {', '.join(cells)}; give an id and four numbers from 0 to 1, intensities scaled as those of scans are")
    return id, values
