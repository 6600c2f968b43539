"""The cache of standardised volumes: checksummed files, made once, in parallel, resumable; unusable scans are set aside with a reason.

A scan is an uncompressed .npz of its image and, for each task, one of its labels as the task's classes, with the name of the image's. Zip
checksums are verified on every read. A 192³ uint8 volume reads as fast as from an uncompressed ArrayRecord and three times faster than from
a zstd one (`scripts/benchmark.py --mode cache`). Names contain a hash of everything that determines the content, so that nothing stale is
read; a record has the provenance and the hashes of the source files.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brainseg_jax.core.errors import InputError, one_line
from brainseg_jax.core.files import atomic_write, check_regular, missing_file, open_regular, safe_name, without_formulas, write_table
from brainseg_jax.core.process_pool import map_in_processes
from brainseg_jax.data.label_checks import check_label_map
from brainseg_jax.data.labels import HEAD, Table, lookup, read_table
from brainseg_jax.data.leakage import shared
from brainseg_jax.data.manifest import Row
from brainseg_jax.data.nifti import Scan, read, read_labels
from brainseg_jax.data.preprocess import Spec, on_grid, standardize_all, standardize_labels
from brainseg_jax.data.synthesis.clusters import with_intensities

VOLUMES = "volumes"  # the folder of standardised volumes within a cache
VERSION = 4  # of cached files: raise it when the same scan and spec give another file
SUSPECT = 20  # failures after which the share of failures is checked before all scans are done


class Entry(NamedTuple):
    """A cached scan: its manifest row and its file, that of its labels if it has any; `load` finds the image's by it."""

    row: Row
    file: Path


Job = tuple[int, Row, Spec, Table | None, list[Path]]  # the row's number, and the files to make of it


class Failure(NamedTuple):
    """A scan that was set aside, with the reason."""

    row: Row
    reason: str


def build(
    rows: Sequence[Row],
    spec: Spec,
    folder: Path,
    *,
    target: Table | None = None,
    heads: Table | None = None,
    max_failures: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int | None = None,
) -> tuple[tuple[Entry, ...], tuple[Failure, ...]]:
    """The cached scans, in the order of `rows`, and the failures, after standardising what the cache does not have yet.

    With a `target`, the first label map of each row is stored as its classes; its scheme has to be a known table. Without one labels are
    not read. Images are stored once for all targets. With `heads`, labels of training rows and of rows with labels only are stored as its
    classes instead, with intensity clusters for unlabelled voxels of the head, for synthesis.

    `progress(done, total)` counts cached scans, too. It stops when more than the share `max_failures` of all scans has failed; untried
    scans are then neither cached nor failures (see `dataset.check_failures`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    failures, files, missing = {}, {}, []
    tables = [heads if heads and (row.split == "train" or row.labels_only) else target for row in rows]
    for i, row in enumerate(rows):
        try:
            files[i] = [folder / name for name in file_names(row, spec, tables[i])]
            if not all(file.exists() for file in files[i]):
                missing.append(i)
        except InputError as error:
            failures[i] = str(error)
    done = len(rows) - len(missing)
    progress(done, len(rows))
    for i, reason in map_in_processes(_make, [(i, rows[i], spec, tables[i], files[i]) for i in missing], workers, "standardised scans"):
        if reason:
            failures[i] = reason
            if len(failures) >= SUSPECT and len(failures) > max_failures * len(rows):
                break
        done += 1
        progress(done, len(rows))
    ready = (i for i in range(len(rows)) if i not in failures and all(file.exists() for file in files[i]))
    return tuple(Entry(rows[i], files[i][-1]) for i in ready), tuple(Failure(rows[i], failures[i]) for i in sorted(failures))


def file_names(row: Row, spec: Spec, target: Table | None = None) -> tuple[str, ...]:
    """The file names, subject_session_HASH.npz, of a row's image and, with a `target` and labels, of its labels.

    The hash covers the version, the spec, and path, size and time of the image files; for labels also of the label map, and both tables.
    Raises InputError for a missing file.
    """
    name = safe_name("_".join(filter(None, (row.subject, row.session))), 80)
    facts: list[Any] = [VERSION, asdict(spec), *map(_facts, row.images), *["alone"] * row.labels_only]
    names = [f"{name}_{_digest(facts)}.npz"]
    if target and row.labels:
        facts += [_facts(row.labels[0]), read_table(row.scheme[0]), target]
        names.append(f"{name}_{_digest(facts)}.npz")
    return tuple(names)


def load(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an entry's file, `image` [x y z c] and, with labels, `label` (classes) [x y z], verified by their checksums.

    Raises InputError for a damaged file, which is made again once it is removed.
    """
    arrays, record = _open(file, arrays=True)
    if "image" in record:
        return arrays | load(file.with_name(record["image"]))
    return {"image": arrays["image"].reshape(*arrays["image"].shape[:3], -1)}  # files of one channel may have three axes


def record(file: Path) -> dict[str, Any]:
    """The record of an entry's image, for resampling back to the scan's own grid (see `standardize`)."""
    own = _open(file)[1]
    return record(file.with_name(own["image"])) if "image" in own else own["standardized"]


def contents(entry: Entry) -> dict[Path, str]:
    """The SHA-256 hashes of an entry's image files and, with labels, of its label map, by path and in this order.

    They were computed when the entry was made. An entry belongs to a path, size and modification time, so that a file replaced under its
    old name has a new entry and hash, unless it has the same size and time to the nanosecond. A copied data set has other paths and equal
    hashes: compare by the row's key and the position in this order.
    """
    return {Path(path): digest for path, digest in _records(entry)["sha256"].items()}


def remarks(entries: Sequence[Entry], source: str | Path) -> list[str]:
    """Warnings, a line each: remarks on reading images, suspicious label maps, and entries with the same voxels in different files.

    Raises InputError, naming `source`, for the same voxels on two sides of the split.
    """
    records, same = [_records(entry) for entry in entries], defaultdict(list)
    for i, record in enumerate(records):
        same[record["voxels"]].append(i)
    lines = shared([entry.row for entry in entries], [group for group in same.values() if len(group) > 1], source)
    lines += [remark for record in records for remark in record["standardized"].get("remarks", ())]
    rows = [entry.row for entry in entries]
    return lines + [f"{row.labels[0]}: {doubt}" for row, record in zip(rows, records, strict=True) for doubt in record.get("doubts", ())]


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Writes a CSV of the scans that were set aside: subject, session, image, reason."""
    lines = ((f.row.subject, f.row.session, f.row.image, f.reason) for f in failures)
    write_table(path, ("subject", "session", "image", "reason"), without_formulas(lines), ",")


def _make(job: Job) -> tuple[int, str]:
    i, row, spec, target, (file, *label_file) = job
    try:
        standardized, scan = _image(row, spec, file)
        if label_file:
            label, doubts = _label(row, target, standardized, scan or read(row.image))
            if target.name == HEAD and not row.labels_only:
                label = with_intensities(label, load(file)["image"][..., 0], target)
            _save(label_file[0], {"label": label}, {"image": file.name, "sha256": _sha256(row.labels[0]), "doubts": doubts})
    except OSError as error:
        raise InputError(f"{file.parent}: cannot be written ({error.strerror}); make room, or set data.cache") from None
    except Exception as error:  # an unusable scan must not stop the others, whatever is wrong with it
        return i, one_line(row.image, error)
    return i, ""


def _image(row: Row, spec: Spec, file: Path) -> tuple[dict[str, Any], Scan | None]:
    """The record of the standardised image, which is made unless there is a sound file, and, if it is made, the first scan. The image of a
    row with labels only is its silhouette."""
    if file.exists():
        with suppress(InputError):  # damaged: make it again
            return _open(file, arrays=True)[1]["standardized"], None
    scans = [read(path) for path in row.images]
    if row.labels_only:
        scans = [_silhouette(scan, path) for scan, path in zip(scans, row.images, strict=True)]
    image, _, record = standardize_all(scans, spec, list(map(str, row.images)))
    digests = {name: digest for path in row.images for name, digest in _sha256(path).items()}
    voxels = hashlib.sha256(np.ascontiguousarray(image)).hexdigest()
    _save(file, {"image": image}, {"standardized": record, "sha256": digests, "voxels": voxels})
    return record, scans[0]


def _silhouette(labels: Scan, path: Path) -> Scan:
    """The mask of labelled voxels. Raises InputError for a label map without background, or with one label."""
    if (ids := np.unique(labels.voxels))[0] != 0:
        raise InputError(f"{path}: has no background, so where the head ends is unknown; give label maps in which the air is 0")
    if len(ids) < 3:
        raise InputError(f"{path}: has one label, of which no scan can be made; give label maps of many structures")
    return labels._replace(voxels=(labels.voxels > 0).astype(np.uint8))


def _label(row: Row, target: Table, record: dict[str, Any], image: Scan) -> tuple[np.ndarray, list[str]]:
    """Labels as classes of the target, on the grid of the standardised image of `record`, and warnings about them."""
    path, table, labels = row.labels[0], read_table(row.scheme[0]), read_labels(row.labels[0])
    label = lookup(standardize_labels(labels, record, str(path)), table, target, str(path))
    # Every head has a brain; structures of a user's own table, such as lesions, may be absent.
    if not label.any() and (target.name == HEAD or all(structure.freesurfer for structure in target.structures)):
        raise InputError(f"{path}: has no structure of {target.name} in the head; correct it, or leave it out of the manifest")
    if row.labels_only:
        return label, []  # the checks compare labels with an image
    return label, check_label_map(on_grid(labels, image.voxels.shape, image.affine, str(path)), image.voxels, image.affine, table)


def _save(file: Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    with atomic_write(file) as part, part.open("wb") as stream:
        np.savez(stream, record=np.array(json.dumps(record)), **arrays)


def _open(file: Path, arrays: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file, if `arrays`, and its record. Raises InputError for a damaged file."""
    try:
        return _members(file, arrays)
    except Exception as error:  # a flipped bit may ask for another compression, a password, a pickle, a huge array
        if isinstance(error, OSError) and error.strerror:  # the system's; NumPy raises others for what is not an archive
            raise InputError(f"{file}: cannot be read ({error.strerror}); check the disk and its permissions") from None
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: the cached volume is damaged ({reason}); remove it and start again, it will be made anew") from None


def _members(file: Path, arrays: bool, tries: int = 5) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with file.open("rb") as stream, np.load(stream) as members:
            record = json.loads(str(members["record"]))
            name = "label" if "image" in record else "image"
            return ({name: members[name]} if arrays else {}), record
    except SystemError:
        # NumPy parses headers with Python's parser, whose recursion counter threads share in Python 3.11, so that it can be wrong after a
        # switch of threads (python/cpython#106905). The file is intact: try again.
        if tries == 1:
            raise
        return _members(file, arrays, tries - 1)


def _records(entry: Entry) -> dict[str, Any]:
    """The records of an entry's image and labels merged, with the hashes of both, images first."""
    own = _open(entry.file)[1]
    image = _open(entry.file.with_name(own["image"]))[1] if "image" in own else own
    return image | own | {"sha256": image["sha256"] | own["sha256"]}


def _facts(path: Path) -> tuple[str, int, int]:
    """The path, size and modification time of a file, which identify its content without reading it."""
    try:
        status = check_regular(path, "give a scan")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(missing_file(path, "correct the manifest, or mount the disk it is on")) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    return str(path), status.st_size, status.st_mtime_ns


def _sha256(path: Path) -> dict[str, str]:
    with open_regular(path, "give a scan") as file:
        return {str(path): hashlib.file_digest(file, "sha256").hexdigest()}


def _digest(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
