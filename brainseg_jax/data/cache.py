"""Standardised volumes on disk: one checksummed file a scan, made once, in parallel, resumable; bad scans are set aside with their reason.

A file is an uncompressed .npz (image, labels by scheme or as a task's classes, record), so that anybody can open it; its zip checksums
are compared whenever it is read. Measured on a 192³ uint8 volume it reads as fast as an uncompressed ArrayRecord and three times faster
than a zstd one (`scripts/benchmark.py --mode cache`). Its name holds a hash of all that decides its content, so nothing stale is ever read.
"""

import csv
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brainseg_jax.data.labels import Table, lookup, read_table
from brainseg_jax.data.manifest import Row
from brainseg_jax.data.nifti import read, read_labels
from brainseg_jax.data.standardize import Spec, standardize, standardize_labels
from brainseg_jax.errors import InputError
from brainseg_jax.files import whole
from brainseg_jax.runtime import cores

VOLUMES = "volumes"  # the folder of standardised volumes within a cache
VERSION = 1  # of what a cached file holds: raise it whenever the same scan and spec would give another
SUSPECT = 20  # failures after which the share of bad scans is judged before all are done


class Entry(NamedTuple):
    """A scan that is ready: its manifest row and its standardised file."""

    row: Row
    file: Path


class Failure(NamedTuple):
    """A scan that was set aside, and why."""

    row: Row
    reason: str


def build(
    rows: Sequence[Row],
    spec: Spec,
    folder: Path,
    *,
    target: Table | None = None,
    max_failures: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int | None = None,
) -> tuple[tuple[Entry, ...], tuple[Failure, ...]]:
    """Standardises what the cache does not hold yet, and returns what is ready, in the order of `rows`, and what failed.

    With a `target` labels are kept as its classes, from the first label map of each row; their schemes have to be known tables then.

    `progress(done, total)` is called as scans are done, those already there included. Once more than the share `max_failures` of all
    scans has failed it stops, and what was not tried is neither ready nor failed; see `dataset.judge`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failures, files, missing = {}, {}, []
    for i, row in enumerate(rows):
        try:
            files[i] = folder / file_name(row, spec, target)
            if not files[i].exists():
                missing.append(i)
        except InputError as error:
            failures[i] = str(error)
    done = len(rows) - len(missing)
    progress(done, len(rows))
    for i, reason in _each([(i, rows[i], spec, target, files[i]) for i in missing], workers):
        if reason:
            failures[i] = reason
            if len(failures) >= SUSPECT and len(failures) > max_failures * len(rows):
                break
        done += 1
        progress(done, len(rows))
    ready = tuple(Entry(rows[i], files[i]) for i in range(len(rows)) if i not in failures and files[i].exists())
    return ready, tuple(Failure(rows[i], failures[i]) for i in sorted(failures))


def file_name(row: Row, spec: Spec, target: Table | None = None) -> str:
    """subject_session_HASH.npz; the hash covers the version, the spec, the tables, and path, size and time of the scan's files.

    Raises InputError for a file that is missing.
    """
    facts: list[Any] = [VERSION, asdict(spec), row.scheme]
    for path in (row.image, *row.labels):
        try:
            status = path.stat()
        except OSError:
            raise InputError(f"{path}: no such file; correct the manifest, or mount the disk it is on") from None
        facts.append((str(path), status.st_size, status.st_mtime_ns))
    if target and row.labels:
        facts += [read_table(row.scheme[0]), target]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    name = "_".join(part for part in (row.subject, row.session) if part)
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[:80] + f"_{digest}.npz"


def load(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a cached file, `image` [x y z] and `label/SCHEME` or `label` (classes) [x y z], checked against their checksums.

    Raises InputError for a file that is damaged: remove it, and it is made again.
    """
    try:
        with np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files if name != "record"}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: the cached volume is damaged ({error}); remove it and start again, it will be made anew") from None


def record(file: Path) -> dict[str, Any]:
    """How a cached volume was made, and the way back to the scan's own grid (see `standardize`)."""
    try:
        with np.load(file) as arrays:
            return json.loads(str(arrays["record"]))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: the cached volume is damaged ({error}); remove it and start again, it will be made anew") from None


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """A CSV of the scans that were set aside: subject, session, image, reason."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("subject", "session", "image", "reason"))
        writer.writerows((f.row.subject, f.row.session, f.row.image, f.reason) for f in failures)


def _each(jobs: list[tuple[int, Row, Spec, Table | None, Path]], workers: int | None) -> Iterator[tuple[int, str]]:
    """(index, reason of failure or "") as scans are done, here or in processes."""
    workers = min(workers or cores(), len(jobs))
    if workers <= 1:
        yield from (_make(job) for job in jobs)
        return
    # Spawned, not forked: JAX's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_make, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise InputError("a process that standardised scans was killed, likely for memory; run again on fewer cores") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _make(job: tuple[int, Row, Spec, Table | None, Path]) -> tuple[int, str]:
    i, row, spec, target, file = job
    try:
        image = standardize(read(row.image), spec, str(row.image))
        arrays: dict[str, Any] = {"image": image.image, "record": json.dumps(image.record)}
        for path, scheme in zip(row.labels[: 1 if target else None], row.scheme, strict=False):
            labels = standardize_labels(read_labels(path), image.record, str(path))
            if target:
                arrays["label"] = lookup(labels, read_table(scheme), target, str(path))
                # A head has a brain; what a table of the user's own knows, such as lesions, may be absent.
                if not arrays["label"].any() and all(structure.freesurfer for structure in target.structures):
                    raise InputError(f"{path}: has no structure of {target.name} in the head; correct it, or leave it out of the manifest")
            else:
                arrays[f"label/{scheme}"] = labels
    except InputError as error:
        return i, str(error)
    except MemoryError:
        return i, f"{row.image}: not enough memory to standardise it; run on fewer cores or a larger machine"
    try:
        with whole(file) as part, part.open("wb") as stream:
            np.savez(stream, **arrays)
    except OSError as error:
        raise InputError(f"{file.parent}: cannot be written ({error.strerror}); make room, or set data.cache") from None
    return i, ""
