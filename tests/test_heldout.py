"""Held-out volumes: which are looked at, means over those that count, and labels in their colours."""

from pathlib import Path

import numpy as np

from brainseg_jax.data.cache import Entry
from brainseg_jax.data.dataset import Dataset
from brainseg_jax.data.labels import read_table
from brainseg_jax.data.manifest import Row
from brainseg_jax.data.standardize import spec
from brainseg_jax.heldout import chosen, mean_of_counted, painted


def test_volumes_are_spread_over_all_held_out_ones():
    val = tuple(Entry(Row(str(i), "", Path(f"{i}.nii"), (), (), "", "val"), Path(str(i))) for i in range(10))
    data = Dataset((), val, spec("default"), (), "", "", "")
    names = lambda most: [int(entry.file.name) for entry in chosen(data, most)]  # noqa: E731
    assert names(4) == [0, 2, 5, 7] and names(64) == list(range(10))


def test_a_structure_counts_where_it_is():
    scores = np.array([[1.0, np.nan, np.nan], [0.5, 0.25, np.nan]])
    np.testing.assert_array_equal(mean_of_counted(scores), [0.75, 0.25, np.nan])


def test_classes_are_painted_in_the_tables_colours():
    table = read_table("seg4")
    image, classes = np.full((2, 1, 1), 0.5, np.float32), np.array([0, 1]).reshape(2, 1, 1)
    out = painted(image, classes, table)
    red, green, blue = bytes.fromhex(table.structures[0].colour[1:])
    np.testing.assert_allclose(out[0, 0, 0], 0.5)
    np.testing.assert_allclose(out[1, 0, 0], 0.45 * 0.5 + 0.55 * np.array([red, green, blue]) / 255, rtol=1e-6)
