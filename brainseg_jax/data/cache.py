"""Standardised volumes on disk: checksummed files, made once, in parallel, resumable; bad scans are set aside with their reason.

A scan is an uncompressed .npz of its image and, for each task, one of its labels as the task's classes, which names the image's; anybody
can open them, and their zip checksums are compared whenever they are read. Measured on a 192³ uint8 volume that reads as fast as an
uncompressed ArrayRecord and three times faster than a zstd one (`scripts/benchmark.py --mode cache`). A name holds a hash of all that
decides the content, so nothing stale is ever read; a record says how it was made, and from what bytes.
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
VERSION = 4  # of what a cached file holds: raise it whenever the same scan and spec would give another
SUSPECT = 20  # failures after which the share of bad scans is judged before all are done


class Entry(NamedTuple):
    """A scan that is ready: its manifest row and its file, that of its labels where it has any: with it `load` finds both."""

    row: Row
    file: Path


Job = tuple[int, Row, Spec, Table | None, list[Path]]  # the row's number, and the files to make of it


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
    heads: Table | None = None,
    max_failures: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int | None = None,
) -> tuple[tuple[Entry, ...], tuple[Failure, ...]]:
    """Standardises what the cache does not hold yet, and returns what is ready, in the order of `rows`, and what failed.

    With a `target` labels are kept as its classes, from the first label map of each row; their schemes have to be known tables then.
    Without one labels are not read. The image is there once, for whatever labels. With `heads` those of training rows, and of
    labels only, are kept as its classes instead, and what they do not name of a head as classes of intensities: what scans are made from.

    `progress(done, total)` is called as scans are done, those already there included. Once more than the share `max_failures` of all
    scans has failed it stops, and what was not tried is neither ready nor failed; see `dataset.judge`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failures, files, missing = {}, {}, []
    classes = [heads if heads and (row.split == "train" or row.labels_only) else target for row in rows]
    for i, row in enumerate(rows):
        try:
            files[i] = [folder / name for name in file_names(row, spec, classes[i])]
            if not all(file.exists() for file in files[i]):
                missing.append(i)
        except InputError as error:
            failures[i] = str(error)
    done = len(rows) - len(missing)
    progress(done, len(rows))
    for i, why in map_in_processes(_make, [(i, rows[i], spec, classes[i], files[i]) for i in missing], workers, "standardised scans"):
        if why:
            failures[i] = why
            if len(failures) >= SUSPECT and len(failures) > max_failures * len(rows):
                break
        done += 1
        progress(done, len(rows))
    ready = (i for i in range(len(rows)) if i not in failures and all(file.exists() for file in files[i]))
    return tuple(Entry(rows[i], files[i][-1]) for i in ready), tuple(Failure(rows[i], failures[i]) for i in sorted(failures))


def file_names(row: Row, spec: Spec, target: Table | None = None) -> tuple[str, ...]:
    """subject_session_HASH.npz of the image and, where the `target` has labels, of these.

    The hash covers the version, the spec, and path, size and time of the scan's files; for labels of theirs, too, and both tables. Raises
    InputError for a file that is missing.
    """
    name = safe_name("_".join(filter(None, (row.subject, row.session))), 80)
    facts: list[Any] = [VERSION, asdict(spec), *map(_facts, row.images), *["alone"] * row.labels_only]
    names = [f"{name}_{_digest(facts)}.npz"]
    if target and row.labels:
        facts += [_facts(row.labels[0]), read_table(row.scheme[0]), target]
        names.append(f"{name}_{_digest(facts)}.npz")
    return tuple(names)


def load(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an entry's file, `image` [x y z c] and, where it has labels, `label` (classes) [x y z], checked by their checksums.

    Raises InputError for a file that is damaged: remove it, and it is made again.
    """
    arrays, found = _open(file, arrays=True)
    if "image" in found:
        return arrays | load(file.with_name(found["image"]))
    return {"image": arrays["image"].reshape(*arrays["image"].shape[:3], -1)}  # files of one channel may have three axes


def record(file: Path) -> dict[str, Any]:
    """How an entry's image was made, and the way back to the scan's own grid (see `standardize`)."""
    found = _open(file)[1]
    return record(file.with_name(found["image"])) if "image" in found else found["standardized"]


def contents(entry: Entry) -> dict[Path, str]:
    """The SHA-256 of the bytes of an entry's images and, where it has labels, of its label map, by their paths and in this order.

    They were taken when the entry was made, and an entry belongs to a path, a size and a time of change: so nothing is read again, and
    whatever was replaced under its old name since has another entry, with another hash here. (Not noticed is only what keeps size and time
    to the nanosecond.) A copied data set has other paths and equal hashes: compare by the row's key and the place in this order.
    """
    return {Path(path): digest for path, digest in _told(entry)["sha256"].items()}


def remarks(entries: Sequence[Entry], source: str | Path) -> list[str]:
    """A line for each thing to say of how an image was read, for each odd label map (see `doubts`), and on entries that have the same
    voxels, whatever their files are called.

    Raises InputError, naming `source`, where those are on two sides of the split.
    """
    told, same = [_told(entry) for entry in entries], defaultdict(list)
    for i, one in enumerate(told):
        same[one["voxels"]].append(i)
    lines = shared([entry.row for entry in entries], [group for group in same.values() if len(group) > 1], source)
    lines += [remark for one in told for remark in one["standardized"].get("remarks", ())]
    return lines + [f"{entry.row.labels[0]}: {doubt}" for entry, one in zip(entries, told, strict=True) for doubt in one.get("doubts", ())]


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """A CSV of the scans that were set aside: subject, session, image, reason."""
    lines = ((f.row.subject, f.row.session, f.row.image, f.reason) for f in failures)
    write_table(path, ("subject", "session", "image", "reason"), without_formulas(lines), ",")


def _make(job: Job) -> tuple[int, str]:
    i, row, spec, target, (file, *label_file) = job
    try:
        made, scan = _image(row, spec, file)
        if label_file:
            label, found = _label(row, target, made, scan or read(row.image))
            if target.name == HEAD and not row.labels_only:
                label = with_intensities(label, load(file)["image"][..., 0], target)
            _save(label_file[0], {"label": label}, {"image": file.name, "sha256": _sha256(row.labels[0]), "doubts": found})
    except OSError as error:
        raise InputError(f"{file.parent}: cannot be written ({error.strerror}); make room, or set data.cache") from None
    except Exception as error:  # one bad scan is one bad scan, whatever is wrong with it
        return i, one_line(row.image, error)
    return i, ""


def _image(row: Row, spec: Spec, file: Path) -> tuple[dict[str, Any], Scan | None]:
    """The record of the standardised image, which is made unless it is there and whole; where it is made, also the first scan.

    Of a row of labels only the image is white where they name something.
    """
    paths = row.images
    if file.exists():
        with suppress(InputError):  # damaged: made anew
            return _open(file, arrays=True)[1]["standardized"], None
    scans = [read(path) for path in paths]
    if row.labels_only:
        scans = [_silhouette(scan, path) for scan, path in zip(scans, paths, strict=True)]
    made = standardize_all(scans, spec, list(map(str, paths)))
    digests = {name: digest for path in paths for name, digest in _sha256(path).items()}
    voxels = hashlib.sha256(np.ascontiguousarray(made.image)).hexdigest()
    _save(file, {"image": made.image}, {"standardized": made.record, "sha256": digests, "voxels": voxels})
    return made.record, scans[0]


def _silhouette(labels: Scan, path: Path) -> Scan:
    """White where labels name something. Raises InputError for a label map that names all, or one thing only."""
    if (found := np.unique(labels.voxels))[0] != 0:
        raise InputError(f"{path}: has no background, so where the head ends is unknown; give label maps in which the air is 0")
    if len(found) < 3:
        raise InputError(f"{path}: has one label, of which no scan can be made; give label maps of many structures")
    return labels._replace(voxels=(labels.voxels > 0).astype(np.uint8))


def _label(row: Row, target: Table, made: dict[str, Any], image: Scan) -> tuple[np.ndarray, list[str]]:
    """Labels as classes of the target, on the grid of the image that was `made` so, and what is odd about them."""
    path, table, labels = row.labels[0], read_table(row.scheme[0]), read_labels(row.labels[0])
    label = lookup(standardize_labels(labels, made, str(path)), table, target, str(path))
    # A head has a brain; what a table of the user's own knows, such as lesions, may be absent.
    if not label.any() and (target.name == HEAD or all(structure.freesurfer for structure in target.structures)):
        raise InputError(f"{path}: has no structure of {target.name} in the head; correct it, or leave it out of the manifest")
    if row.labels_only:
        return label, []  # doubts compare labels with an image
    return label, check_label_map(on_grid(labels, image.voxels.shape, image.affine, str(path)), image.voxels, image.affine, table)


def _save(file: Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    with atomic_write(file) as part, part.open("wb") as stream:
        np.savez(stream, record=np.array(json.dumps(record)), **arrays)


def _open(file: Path, arrays: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a file holds: its arrays, where they are asked for, and its record. Raises InputError where it is damaged."""
    try:
        return _members(file, arrays)
    except OSError as error:
        if error.strerror:  # the system's; numpy has its own for what is no archive
            raise InputError(f"{file}: cannot be read ({error.strerror}); check the disk and its permissions") from None
        raise InputError(_damaged(file, error)) from None
    except Exception as error:  # a flipped bit may ask for another compression, a password, a pickle, a huge array
        raise InputError(_damaged(file, error)) from None


def _members(file: Path, arrays: bool, tries: int = 5) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with file.open("rb") as stream, np.load(stream) as members:
            record = json.loads(str(members["record"]))
            name = "label" if "image" in record else "image"
            return ({name: members[name]} if arrays else {}), record
    except SystemError:
        # NumPy has Python parse headers, and Python 3.11 keeps one count of how deep it parses for all threads: a thread that others
        # interrupt may find it changed (python/cpython#106905). The file is as it was.
        if tries == 1:
            raise
        return _members(file, arrays, tries - 1)


def _damaged(file: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{file}: the cached volume is damaged ({reason}); remove it and start again, it will be made anew"


def _told(entry: Entry) -> dict[str, Any]:
    """The record of an entry's image and that of its labels in one; of both the hashes of their files, images first."""
    own = _open(entry.file)[1]
    image = _open(entry.file.with_name(own["image"]))[1] if "image" in own else own
    return image | own | {"sha256": image["sha256"] | own["sha256"]}


def _facts(path: Path) -> tuple[str, int, int]:
    """What tells a file from another and from itself at another time, without reading it."""
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
