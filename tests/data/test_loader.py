"""Batches are a pure function of (seed, step): not of threads, workers, processes, or of where a run was interrupted."""

import multiprocessing
import os
import subprocess
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data import cache, loader
from brainseg_jax.data.augment.prepare import enlarged_crop
from brainseg_jax.data.labels import read_table
from brainseg_jax.data.loader import ProcessShare, central_crop, eval_batches, train_batches
from brainseg_jax.data.manifest import read_manifest
from brainseg_jax.data.preprocess import spec
from brainseg_jax.training.program import parts_of_batch

SIZE, CROP = (8, 9, 10), (4, 4, 4)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    """Five volumes in which every voxel says which volume it is of, and where."""
    folder = tmp_path_factory.mktemp("volumes")
    files = []
    for i in range(5):
        files.append(folder / f"{i}.npz")
        np.savez(files[-1], image=1000 * i + np.arange(np.prod(SIZE), dtype=np.int32).reshape(SIZE), record="{}")
    return files


def take(files, steps, start=0, share=ProcessShare(0, 1), threads=1, workers=0, **how):  # noqa: B008
    how = {"crop": CROP, "crops_per_volume": 1, "batch": 4, "seed": 0} | how
    stream = train_batches(files, start=start, share=share, threads=threads, workers=workers, **how)
    return [batch["image"] for batch in islice(stream, steps)]


def volume_of(crop):
    return int(crop[0, 0, 0, 0]) // 1000


def equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_shapes_and_stored_type(volumes):
    (image,) = take(volumes, 1)
    assert image.shape == (4, *CROP, 1) and image.dtype == np.int32


def test_from_step_s_on_it_is_the_tail_of_the_whole(volumes):
    whole = take(volumes, 9)
    for start in (1, 4, 7):
        equal(take(volumes, 9 - start, start=start), whole[start:])


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_change_nothing(volumes, threads):
    equal(take(volumes, 6, threads=threads), take(volumes, 6))


@pytest.mark.slow
def test_workers_change_nothing_and_one_that_is_killed_is_one_line(volumes):
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    equal(take(volumes, 6, workers=2), take(volumes, 6))
    stream = train_batches(volumes, start=3, crop=CROP, crops_per_volume=1, batch=4, seed=0, workers=3)
    equal([batch["image"] for batch in islice(stream, 3)], take(volumes, 6)[3:])
    (child, *_) = (process for process in multiprocessing.active_children() if "grain" in process.name)
    child.kill()
    with pytest.raises(InputError, match=r"a process that reads crops was killed.*data\.workers"):
        list(islice(stream, 100))


def test_shared_memory_of_runs_that_are_no_more_is_released(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "SHARED", tmp_path)
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine, left = (tmp_path / f"{loader._mark(process)}0123" for process in (os.getpid(), dead.pid))
    foreign = tmp_path / f"brainseg_jax-1-{dead.pid}-0123", tmp_path / "psm_0123"  # of another container, of another program
    for file in (mine, left, *foreign):
        file.touch()
    loader._forget_dead()
    assert set(tmp_path.iterdir()) == {mine, *foreign}


def test_what_workers_of_this_process_left_is_released_and_of_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "SHARED", tmp_path)
    mine, other = (tmp_path / f"{loader._mark(process)}0123" for process in (os.getpid(), os.getppid()))
    for file in (mine, other):
        file.touch()
    loader.release_shared()
    assert set(tmp_path.iterdir()) == {other}


@pytest.mark.parametrize(("count", "crops"), [(2, 1), (4, 1), (2, 2)])
def test_shares_of_processes_make_the_global_batch(volumes, count, crops):
    whole = take(volumes, 5, crops_per_volume=crops)
    shares = [take(volumes, 5, share=ProcessShare(i, count), crops_per_volume=crops) for i in range(count)]
    equal([np.concatenate(parts) for parts in zip(*shares, strict=True)], whole)


def test_seed_decides(volumes):
    equal(take(volumes, 3), take(volumes, 3))
    assert not all(np.array_equal(a, b) for a, b in zip(take(volumes, 3), take(volumes, 3, seed=1), strict=True))


def test_every_volume_once_an_epoch_and_epochs_in_another_order(volumes):
    """Four epochs of five volumes in five batches of four."""
    order = [volume_of(crop) for batch in take(volumes, 5) for crop in batch]
    epochs = [tuple(order[i : i + 5]) for i in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs) and len(set(epochs)) > 1


def test_crops_of_a_volume_stand_together(volumes):
    (image,) = take(volumes, 1, crops_per_volume=2)
    of = [volume_of(crop) for crop in image]
    assert of[0] == of[1] != of[2] == of[3] and not np.array_equal(image[0], image[1])


def test_crops_are_boxes_of_the_volume_at_every_place(volumes):
    """Every start from 0 to size − crop comes up along each axis, both ends included; the same volume is cut elsewhere next time."""
    starts = [[], [], []]
    for batch in take(volumes, 60):
        for crop in batch[..., 0]:
            at = np.unravel_index(int(crop[0, 0, 0]) % 1000, SIZE)
            whole = 1000 * (int(crop[0, 0, 0]) // 1000) + np.arange(np.prod(SIZE)).reshape(SIZE)
            np.testing.assert_array_equal(crop, whole[tuple(slice(a, a + 4) for a in at)])
            for axis in range(3):
                starts[axis].append(int(at[axis]))
    for axis, size in enumerate(SIZE):
        counts = Counter(starts[axis])
        assert set(counts) == set(range(size - 4 + 1)) and max(counts.values()) < 2 * min(counts.values())


def test_a_patch_is_its_crop_with_all_that_lies_around_it_in_the_volume(volumes):
    """The crops are those that come without patches; each lies in the middle of its box, or nearer to the volume's end."""
    patch = (8, 7, 8)
    how = {"crop": CROP, "crops_per_volume": 2, "batch": 4, "seed": 0, "start": 0, "threads": 1}
    plain, wide = train_batches(volumes, **how), train_batches(volumes, **how, patch=patch)
    for _ in range(10):
        crops, boxes = next(plain), next(wide)
        assert boxes["image"].shape == (4, *patch, 1) and boxes["place"].dtype == np.int32 and "place" not in crops
        for crop, box, place in zip(crops["image"], boxes["image"], boxes["place"], strict=True):
            np.testing.assert_array_equal(box[tuple(slice(p, p + n) for p, n in zip(place, CROP, strict=True))], crop)
            begins = np.array(np.unravel_index(int(box[0, 0, 0, 0]) % 1000, SIZE)) + place
            np.testing.assert_array_equal(begins - place, np.clip(begins - [2, 1, 2], 0, np.array(SIZE) - patch))


@pytest.mark.parametrize("crops", [1, 2])
def test_each_crop_says_whether_its_volume_has_labels_only(volumes, crops):
    """On any share of processes, and the crops are what they are without it."""
    alone = (True, False, False, True, False)
    how = {"crop": CROP, "crops_per_volume": crops, "batch": 4, "seed": 0, "start": 0, "threads": 1}
    plain, whole = train_batches(volumes, **how), train_batches(volumes, **how, labels_only=alone)
    halves = [train_batches(volumes, **how, labels_only=alone, share=ProcessShare(i, 2)) for i in range(2)]
    said = []
    for _ in range(8):
        batch, parts = next(whole), [next(half) for half in halves]
        np.testing.assert_array_equal(batch["image"], next(plain)["image"])
        assert batch["labels_only"].shape == (4,) and batch["labels_only"].dtype == bool
        assert batch["labels_only"].tolist() == [alone[volume_of(crop)] for crop in batch["image"]]
        np.testing.assert_array_equal(np.concatenate([part["labels_only"] for part in parts]), batch["labels_only"])
        said += batch["labels_only"].tolist()
    assert 0 < sum(said) < len(said)


@pytest.mark.parametrize("chance", [0.0, 0.5])
def test_batches_are_what_the_step_is_compiled_for(cohort, small, chance):
    """With and without deformations, which need what lies around a crop."""
    config = small(**{"augment.elastic.chance": chance})
    entries, _ = cache.build(read_manifest(cohort), spec("default", 4.0, (32, 32, 32)), cohort.parent / "volumes", max_failures=0.0)
    files = [entry.file for entry in entries]
    batch = next(
        train_batches(files, crop=config.data.crop, patch=enlarged_crop(config), crops_per_volume=1, batch=2, seed=0, start=0, threads=1)
    )
    assert {name: (part.shape[1:], part.dtype) for name, part in batch.items()} == parts_of_batch(config)
    assert ("place" in batch) == (chance > 0)


def test_batches_with_made_scans_are_what_the_step_is_compiled_for(heads, small):
    fine = {"objective": "segmentation", "data.labels": "seg4", "classes": 5, "synth.share": 0.5, "augment.elastic.chance": 0.5}
    config, rows = small(**fine), read_manifest(heads)
    target, made = read_table("seg4"), read_table("head")
    entries, _ = cache.build(
        rows, spec("default", 4.0, (32, 32, 32)), heads.parent / "volumes", target=target, heads=made, max_failures=0.0, workers=1
    )
    how = {"crop": config.data.crop, "patch": enlarged_crop(config), "crops_per_volume": 2, "batch": 2, "seed": 0, "start": 0, "threads": 1}
    batch = next(train_batches([entry.file for entry in entries], **how, labels_only=[row.labels_only for row in rows]))
    assert {name: (part.shape[1:], part.dtype) for name, part in batch.items()} == parts_of_batch(config)


def test_a_crop_as_large_as_the_volume_is_the_volume(volumes):
    (image,) = take(volumes, 1, crop=SIZE)
    assert sorted(volume_of(crop) for crop in image) == sorted({volume_of(crop) for crop in image})
    np.testing.assert_array_equal(image[0, ..., 0] % 1000, np.arange(np.prod(SIZE)).reshape(SIZE))


def test_central_crop_by_hand():
    volume = np.arange(7 * 1 * 4).reshape(7, 1, 4)
    np.testing.assert_array_equal(central_crop(volume, (4, 1, 2)), [[[5, 6]], [[9, 10]], [[13, 14]], [[17, 18]]])


def test_held_out_volumes_come_once_and_padding_weighs_nothing(volumes):
    batches = list(eval_batches(volumes, crop=CROP, batch=2))
    assert [batch["weight"].tolist() for batch in batches] == [[1, 1], [1, 1], [1, 0]]
    assert all(batch["image"].shape == (2, *CROP, 1) for batch in batches)
    assert [volume_of(crop) for batch in batches for crop, w in zip(batch["image"], batch["weight"], strict=True) if w] == [0, 1, 2, 3, 4]
    middle = np.arange(np.prod(SIZE)).reshape(SIZE)[2:6, 2:6, 3:7]
    np.testing.assert_array_equal(batches[0]["image"][0, ..., 0], middle)


@pytest.mark.parametrize("count", [2, 4])
def test_held_out_shares_make_the_global_batch(volumes, count):
    whole = list(eval_batches(volumes, crop=CROP, batch=4))
    shares = [list(eval_batches(volumes, crop=CROP, batch=4, share=ProcessShare(i, count))) for i in range(count)]
    for name in ("image", "weight"):
        equal([np.concatenate([part[name] for part in parts]) for parts in zip(*shares, strict=True)], [b[name] for b in whole])
