"""Segments scan after scan: the next is read while one is segmented, and a scan that fails does not stop the others. Imports JAX."""

import errno
import importlib.metadata
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import brainseg_jax
from brainseg_jax.core.errors import InputError, one_line
from brainseg_jax.core.files import read_beginning
from brainseg_jax.core.progress import progress
from brainseg_jax.data import case_files, nifti_write
from brainseg_jax.data.cache import Failure, write_failures
from brainseg_jax.data.case_files import Case
from brainseg_jax.data.labels import lookup
from brainseg_jax.data.layouts import stem
from brainseg_jax.data.nifti import read, read_labels
from brainseg_jax.inference import input_checks, prediction, segmentation
from brainseg_jax.inference.outputs import NAMES, Sidecar, qc_fields, write_json, write_names
from brainseg_jax.inference.resume import Job, cause_of, checkpoints, digest, fingerprint, recorded
from brainseg_jax.qc import case_records
from brainseg_jax.qc.findings import examine

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # these end the run, since nothing more can be written
MOMENT = 5.0  # seconds within which the sidecar of a label map is written


def segment_all(job: Job, cases: tuple[Case, ...], results: dict[Case, Sidecar], reasons: Path) -> list[str]:
    """Segments the cases without a result, adds their sidecars to `results`, and returns the reasons of failures, also in `reasons`.

    A case that only lacks its record for the QC report gets it from the existing label map.
    """
    todo = [case for case in cases if case not in results or not recorded(job, case)]
    if not todo:
        reasons.unlink(missing_ok=True)
        return []
    if without_record := sum(case in results for case in todo):
        print(f"label maps that are there already and are taken as they are for the QC report: {without_record}")
    show, failures = progress("segmenting scans"), []
    show(len(cases) - len(todo), len(cases))
    scans = prefetch(partial(read_case, job, results), todo)
    if without_record < len(todo):
        with suppress(Exception):  # too large for the machine: reported for each scan
            segmentation.compile_ahead(job.by)  # while the first scan is read
    for n, (case, future) in enumerate(scans, len(cases) - len(todo) + 1):
        try:
            results[case] = finish_case(job, case, results.get(case), *future.result())
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            failures.append(Failure(case.row, one_line(case.row.image, error)))
            reasons.parent.mkdir(parents=True, exist_ok=True)
            write_failures(reasons, failures)
            with suppress(OSError):  # a name that no file can have
                case_files.record_file(case.sidecar, job.folder).unlink(missing_ok=True)  # it may be of an earlier scan or label map
        show(n, len(cases))
    if not failures:
        reasons.unlink(missing_ok=True)
    return [failure.reason for failure in failures]


def prefetch(read: Callable[[Case], Any], cases: Iterable[Case]) -> Iterator[tuple[Case, Future]]:
    """Pairs of each case and the future of `read(case)`; the next is read meanwhile, and the first is started by the call."""
    pool, cases = ThreadPoolExecutor(1), iter(cases)
    submit = lambda case: (case, pool.submit(read, case))  # noqa: E731
    first = next(map(submit, cases), None)

    def pairs() -> Iterator[tuple[Case, Future]]:
        with pool:
            current = first
            while current:
                following = next(map(submit, cases), None)
                yield current
                current = following

    return pairs()


def read_case(job: Job, results: dict[Case, Sidecar], case: Case) -> tuple[str, Any, Any]:
    """(fingerprint, scan if the QC report needs it, the standardised scan or, for a case with a result, the classes of its label map).

    Raises InputError for a scan that cannot be segmented, and where a file of another origin would be overwritten.
    """
    if case.fault:
        raise InputError(case.fault)
    if not case.sidecar.exists() and not job.options.overwrite:
        # The table of names belongs to no sidecar: many scans share it, and an earlier run may have been stopped before its first sidecar.
        own = [case.labels] if shared_names(case.names) else [case.labels, case.names]
        existing = [file for file in own if file.exists()]
        if existing and not followed(existing[0], case.sidecar):
            lacks = f"without {case.sidecar.name} is not from this command"
            raise InputError(f"{existing[0]}: exists, and {lacks}; move it away, or add --overwrite")
    images = case.row.images
    try:
        mark = fingerprint(job, case)
    except OSError:
        mark = ""  # reading the scan reports the error
    scan = read(images[0])
    if case in results:
        ready = classes_of(job, case, scan)
    else:
        ready = segmentation.prepare(job.by, [scan, *map(read, images[1:])], list(map(str, images)))
    return mark, scan if job.options.qc else None, ready


def shared_names(file: Path) -> bool:
    """Whether a file is a table of names as this command writes it."""
    return read_beginning(file, 1000).startswith("\t".join(NAMES).encode())


def classes_of(job: Job, case: Case, scan: Any) -> Any:
    """The classes of an existing label map, which may have been corrected by hand. Raises InputError if it cannot be used."""
    try:
        labels = read_labels(case.labels)
    except InputError as refusal:
        raise InputError(f"{cause_of(refusal)}; delete it and run again") from None
    if labels.voxels.shape != scan.voxels.shape or not np.allclose(labels.affine, scan.affine, atol=0.01):
        raise InputError(f"{case.labels}: lies on another grid than its scan; delete it, and it is made again")
    return lookup(labels.voxels, job.table, job.table, str(case.labels))


def followed(file: Path, sidecar: Path) -> bool:
    """Whether the sidecar of a file that another process has just written appears within a moment."""
    while not sidecar.exists():
        if not 0 <= time.time() - file.stat().st_mtime < MOMENT:
            return False
        time.sleep(0.1)
    return True


def finish_case(job: Job, case: Case, sidecar: Sidecar | None, mark: str, scan: Any, ready: Any) -> Sidecar:
    """Writes the files that a case lacks, each atomically and the sidecar last, and returns the sidecar: it marks the case as done.

    `sidecar`: the existing one, if any; `mark`, `scan` and `ready`: the results of `read_case`. Raises InputError, before anything is
    written, if there is no brain.
    """
    table, cohort = job.table, job.by.cohort()
    if sidecar:
        findings = examine(ready, scan.affine, table, cohort, sidecar["Entropy"])
        current = sidecar | qc_fields(findings, table, [volume["soft_ml"] for volume in sidecar["Volumes"]])
        current["SHA256"] = sidecar["SHA256"] | {case.labels.name: digest(str(case.labels))}
        if current != sidecar:
            write_json(case.sidecar, current)
        case_records.write(case, job.folder, current, scan, ready, table, findings, cohort)
        return current
    image = case.row.image
    classes, ml, soft = segmentation.segment(job.by, ready)
    input_checks.check_not_empty(job.by.table, ml, str(image))
    findings = examine(classes, np.array(ready.record["source_affine"]), table, cohort, soft.entropy)
    raw = job.source.root if job.source.kind == "bids" else None
    sources = [f"bids:raw:{path.relative_to(raw).as_posix()}" if raw else str(path) for path in case.row.images]
    origin = {"Sources": sources, "SpatialReference": sources[0]}
    made = {"Description": description(job), "MadeFrom": mark, "Entropy": round(soft.entropy, 4), "Remarks": ready.record["remarks"]}
    sidecar = origin | made | qc_fields(findings, table, soft.volumes[1:].tolist())
    if job.options.post:
        nifti_write.write_soft(case.soft, segmentation.soft_maps(soft, ready), len(soft.soft), image)
        names = ["BG", *(s.abbreviation for s in table.structures)]
        write_json(case.soft.with_name(stem(case.soft) + ".json"), origin | {"LabelMap": names})
    names_digest = write_names(case.names, table)
    nifti_write.write_like(case.labels, prediction.as_ids(classes, table), image)
    try:
        if job.options.qc:
            case_records.write(case, job.folder, sidecar, scan, classes, table, findings, cohort)
        written = (case.labels, *[case.soft] * job.options.post)
        sidecar["SHA256"] = {file.name: digest(str(file)) for file in written} | {case.names.name: names_digest}
        write_json(case.sidecar, sidecar)
    except BaseException:  # a full disk, Ctrl-C: a label map without a sidecar would be refused by the next run
        case.labels.unlink(missing_ok=True)
        raise
    return sidecar


def description(job: Job) -> str:
    """What made the labels, in one sentence without its full stop."""
    versions = f"brainseg_jax {brainseg_jax.__version__}, JAX {importlib.metadata.version('jax')}"
    network = job.options.checkpoint or Path(checkpoints(job.options)[0]).name
    options = ", left-right flips too" * job.options.tta + ", small components kept" * job.options.keep_small_components
    return f"{len(job.table.structures)} structures ({job.table.name}) by {network}{options}; {versions}"
