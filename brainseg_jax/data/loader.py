"""Batches of crops from cached volumes, with Grain: shuffle, repeat, share, read and crop, batch, prefetch.

The stream is a pure function of (seed, step): the volumes and crop positions of step s do not depend on the number of processes, threads
or workers, nor on where a run was interrupted. So there is no iterator state to save.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import is_running, machine_id
from brainseg_jax.core.runtime import block_signals, end_with_parent
from brainseg_jax.data.cache import load

Arrays = dict[str, np.ndarray]


class ProcessShare(NamedTuple):
    """The part of every global batch that this process reads: part `index` of `count`."""

    index: int
    count: int


ALL = ProcessShare(0, 1)


def train_batches(
    files: Sequence[Path],
    *,
    crop: tuple[int, int, int],
    crops_per_volume: int,
    batch: int,
    seed: int,
    start: int,
    patch: tuple[int, int, int] | None = None,
    labels_only: Sequence[bool] = (),
    share: ProcessShare = ALL,
    threads: int = 4,
    workers: int = 0,
) -> Iterator[Arrays]:
    """Endless batches from step `start` on: {"image": [b x y z c] as stored, "label": [b x y z] of volumes that have one},
    b = batch / share.count.

    Each volume yields `crops_per_volume` crops, which are adjacent in a batch. With a `patch` larger than the crop (voxels) each comes with
    its surroundings, and "place" [b 3] is the crop's first voxel in the patch; the crops are the same. If `labels_only` gives for each file
    whether it has labels only, batches have "labels_only" [b].
    """
    volumes = batch // crops_per_volume // share.count
    order = grain.MapDataset.range(len(files)).seed(seed).shuffle().repeat()
    data = grain.MapDataset.source(_Order(order, share, volumes))[start * volumes :]
    data = data.map(_Crops(tuple(files), crop, patch or crop, crops_per_volume, seed, tuple(labels_only)))
    stream = data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if workers:
        _forget_dead()
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2), _start_worker)
    # Batched after the workers, so that batches do not depend on their number.
    stream = stream.batch(volumes, drop_remainder=True)
    return _reshaped(iter(stream))


def _reshaped(stream: grain.DatasetIterator) -> Iterator[Arrays]:
    """The batches with the axes of volumes and crops merged. Workers end when the generator is closed."""
    try:
        with block_signals():  # the first batch starts the workers
            first = next(stream)
        for batch in chain([first], stream):
            yield {name: a.reshape(-1, *a.shape[2:]) for name, a in batch.items()}
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):  # Grain's message
            raise
        raise InputError("a process that reads crops was killed, likely for memory; use fewer data.workers, then go on") from error
    finally:
        with suppress(FileNotFoundError):  # shared memory of a killed worker may be gone already
            stream.close()


def eval_batches(files: Sequence[Path], *, crop: tuple[int, int, int], batch: int, share: ProcessShare = ALL) -> Iterator[Arrays]:
    """The central crop of every volume once: {"image": [b x y z c], "weight": [b]}; the last batch is padded with weight 0."""
    local = batch // share.count
    for first in range(0, len(files), batch):
        own = range(first + share.index * local, first + (share.index + 1) * local)
        crops = [central_crop(load(files[min(i, len(files) - 1)])["image"], crop) for i in own]
        yield {"image": np.stack(crops), "weight": np.array([float(i < len(files)) for i in own], np.float32)}


def central_crop(volume: np.ndarray, crop: tuple[int, int, int]) -> np.ndarray:
    """The central crop of a volume, rounded towards the first voxel."""
    return crop_box(volume, [(n - c) // 2 for n, c in zip(volume.shape[:3], crop, strict=True)], crop)


def crop_box(volume: np.ndarray, start: Sequence[int], crop: Sequence[int]) -> np.ndarray:
    """A copy of the box of size `crop` that begins at `start`, with all channels."""
    return np.ascontiguousarray(volume[tuple(slice(s, s + c) for s, c in zip(start, crop, strict=True))])


class _Order:
    """The endless reading order as a Grain source: element j of this process → (its number in the global stream, volume)."""

    def __init__(self, order: grain.MapDataset, share: ProcessShare, local: int):
        self.order, self.share, self.local = order, share, local

    def __len__(self) -> int:
        # Grain gives an endless data set the largest integer as its length; this has to stay below.
        return len(self.order) // self.share.count // 2

    def __getitem__(self, j: int) -> tuple[int, int]:
        step, i = divmod(int(j), self.local)
        number = (step * self.share.count + self.share.index) * self.local + i
        return number, int(self.order[number])


class _Crops(grain.transforms.Map):
    """A transform from a volume to random crops, or patches around them, by the element's own random generator."""

    def __init__(
        self,
        files: tuple[Path, ...],
        crop: tuple[int, int, int],
        patch: tuple[int, int, int],
        crops: int,
        seed: int,
        labels_only: tuple[bool, ...],
    ):
        self.files, self.crop, self.patch, self.crops, self.seed, self.labels_only = files, crop, patch, crops, seed, labels_only

    def map(self, element: tuple[int, int]) -> Any:
        number, volume = element
        arrays = load(self.files[volume])
        rng = np.random.default_rng([self.seed, number])
        size, crop, patch = (np.array(shape) for shape in (arrays["image"].shape[:3], self.crop, self.patch))
        starts = rng.integers(0, size - crop + 1, size=(self.crops, 3))
        corners = np.clip(starts - (patch - crop) // 2, 0, size - patch)
        names = [name for name in ("image", "label") if name in arrays]
        boxes = {name: np.stack([crop_box(arrays[name], corner, self.patch) for corner in corners.tolist()]) for name in names}
        place = {"place": (starts - corners).astype(np.int32)} if self.patch != self.crop else {}
        labels_only = {"labels_only": np.full(self.crops, self.labels_only[volume])} if self.labels_only else {}
        return boxes | place | labels_only


# Workers pass batches in shared memory. It is released when a run ends, by Python's resource tracker if the run is killed; but not if all
# its processes are killed at once, as for memory or by a cluster. So its name contains the process that owns it.
SHARED = Path("/dev/shm")


def _mark(process: int) -> str:
    """The prefix of names of shared memory of a run with this process id on this machine."""
    return f"brainseg_jax-{machine_id()}-{process}-"


def _start_worker(*_: int) -> None:
    end_with_parent()
    if SHARED.is_dir():
        # Grain leaves naming to Python, whose private constants these are.
        shared_memory._SHM_NAME_PREFIX = "/" + _mark(os.getppid())
        shared_memory._SHM_SAFE_NAME_LENGTH = len(shared_memory._SHM_NAME_PREFIX) + 16


def release_shared() -> None:
    """Releases shared memory that workers of this process left, after all have ended: memory not yet registered with Python's tracker."""
    for file in SHARED.glob(f"{_mark(os.getpid())}*"):
        file.unlink(missing_ok=True)


def _forget_dead() -> None:
    """Releases shared memory of this user's dead runs."""
    for file in SHARED.glob(f"brainseg_jax-{machine_id()}-*"):
        with suppress(OSError):  # another process was faster
            if file.stat().st_uid == os.getuid() and not is_running(int(file.name.split("-")[2])):
                file.unlink()
