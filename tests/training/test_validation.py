"""Held-out volumes: which are looked at, means over those that count, and labels in their colours."""

from pathlib import Path

import numpy as np
import pytest

from brainseg_jax.data import cache
from brainseg_jax.data.cache import Entry
from brainseg_jax.data.dataset import Dataset
from brainseg_jax.data.labels import read_table
from brainseg_jax.data.loader import ALL, ProcessShare
from brainseg_jax.data.manifest import Row, read_manifest
from brainseg_jax.data.preprocess import spec
from brainseg_jax.data.synthesis.generator import generator_of
from brainseg_jax.inference import sliding_window
from brainseg_jax.inference.sliding_window import Segmentation
from brainseg_jax.parallel import sync
from brainseg_jax.training.validation import colour_overlay, mean_of_counted, of_volumes, validation_volumes


def test_volumes_are_spread_over_all_held_out_ones():
    val = tuple(Entry(Row(str(i), "", Path(f"{i}.nii"), (), (), "", "val"), Path(str(i))) for i in range(10))
    data = Dataset((), val, spec("default"), (), "", "", "")
    names = lambda most: [int(entry.file.name) for entry in validation_volumes(data, most)]  # noqa: E731
    assert names(4) == [0, 2, 5, 7] and names(64) == list(range(10))


def test_a_structure_counts_where_it_is():
    scores = np.array([[1.0, np.nan, np.nan], [0.5, 0.25, np.nan]])
    np.testing.assert_array_equal(mean_of_counted(scores), [0.75, 0.25, np.nan])


def test_classes_are_painted_in_the_tables_colours():
    table = read_table("seg4")
    image, classes = np.full((2, 1, 1), 0.5, np.float32), np.array([0, 1]).reshape(2, 1, 1)
    out = colour_overlay(image, classes, table)
    red, green, blue = bytes.fromhex(table.structures[0].colour[1:])
    np.testing.assert_allclose(out[0, 0, 0], 0.5)
    np.testing.assert_allclose(out[1, 0, 0], 0.45 * 0.5 + 0.55 * np.array([red, green, blue]) / 255, rtol=1e-6)


@pytest.fixture
def validation(heads, small, monkeypatch):
    """`validation(**changes)`: of_volumes on a scan and on labels only, and the list of the images that it gives a network."""
    target, made = read_table("seg4"), read_table("head")
    rows = read_manifest(heads)
    how = {"target": target, "heads": made, "max_failures": 0.0, "workers": 1}
    entries, _ = cache.build(rows, spec("default", 4.0, (32, 32, 32)), heads.parent / "volumes", **how)
    seen = []

    def segment(models, image, **_):
        seen.append(np.asarray(image))
        return Segmentation(np.zeros(image.shape[:3], np.uint8), np.zeros(5, np.float32))

    monkeypatch.setattr(sliding_window, "segment", segment)

    def validation(share=ALL, **changes):
        fine = {"objective": "segmentation", "data.labels": "seg4", "classes": 5, "synth.share": 0.5}
        data = Dataset(entries[:2], entries[2:], spec("default"), (), "", "", "", target)
        config = small(**fine | changes)
        return of_volumes(None, config, data, share, generator_of(config, target)), seen

    return validation, entries


def test_of_labels_only_the_same_scan_is_made_at_every_evaluation(validation):
    make, entries = validation
    assert [entry.row.labels_only for entry in entries] == [False, True, True, False]
    assert len(np.unique(cache.load(entries[2].file)["label"])) > len(np.unique(cache.load(entries[3].file)["label"]))  # the skin, too
    one, seen = make()
    first = one.evaluate({})
    assert one.evaluate({}) == first and set(first) >= {"loss", "dice", "dice/Cortex"}
    again, _ = make()
    again.draw({})
    made, real, made_again, real_again, drawn = seen
    np.testing.assert_array_equal(made, made_again)
    np.testing.assert_array_equal(made, drawn)
    np.testing.assert_array_equal(real, real_again)
    np.testing.assert_allclose(real, cache.load(entries[3].file)["image"] / 255, atol=1e-6)
    assert made.shape == real.shape and 0 <= made.min() < made.max() <= 1 and len(np.unique(made)) > 100
    other, _ = make(seed=1)
    other.evaluate({})
    assert not np.array_equal(seen[-2], made)
    np.testing.assert_array_equal(seen[-1], real)


def test_each_process_makes_the_scans_of_its_share(validation, monkeypatch):
    make, _ = validation
    whole, seen = make()
    whole.evaluate({})
    parts = [make(share=ProcessShare(i, 2))[0] for i in range(2)]
    monkeypatch.setattr(sync, "all_gather", lambda text: [text, text])
    for part in parts:
        part.evaluate({})
    for ours, theirs in zip(seen[:2], seen[2:], strict=True):
        np.testing.assert_array_equal(ours, theirs)
