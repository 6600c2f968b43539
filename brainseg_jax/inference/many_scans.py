"""Scan after scan: one is read while another is segmented, and one bad scan does not lose the others."""

import errno
import importlib.metadata
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import brainseg_jax
from brainseg_jax.core.errors import InputError, one_line
from brainseg_jax.core.files import read_beginning
from brainseg_jax.data import inputs
from brainseg_jax.data.inputs import Case
from brainseg_jax.data.layouts import stem
from brainseg_jax.inference.job import Job, cause_of, checkpoints, digest, fingerprint, recorded
from brainseg_jax.inference.outputs import NAMES, Sidecar, qc_fields, write_json, write_names

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what ends the run, since nothing more can be written


MOMENT = 5.0  # seconds within which a label map's sidecar is written


def segment_all(job: Job, cases: tuple[Case, ...], results: dict[Case, Sidecar], reasons: Path) -> list[str]:
    """Segments the cases that have no result, gives them one, and returns why others have none, which also stands in the file `reasons`.

    A case that only lacks what the QC report shows gets it from the label map that is there.
    """
    todo = [case for case in cases if case not in results or not recorded(job, case)]
    if not todo:
        reasons.unlink(missing_ok=True)
        return []
    from brainseg_jax.core.progress import progress
    from brainseg_jax.data.cache import Failure, write_failures
    from brainseg_jax.inference import segmentation

    if lacking := sum(case in results for case in todo):
        print(f"label maps that are there already and are taken as they are for the QC report: {lacking}")
    show, failures = progress("segmenting scans"), []
    show(len(cases) - len(todo), len(cases))
    scans = prefetch(partial(read_case, job, results), todo)
    if lacking < len(todo):
        with suppress(Exception):  # what is too large for the machine is said of each scan
            segmentation.compile_ahead(job.by)  # meanwhile the first scan is read
    for n, (case, coming) in enumerate(scans, len(cases) - len(todo) + 1):
        try:
            results[case] = finish_case(job, case, results.get(case), *coming.result())
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise  # the others would be computed for nothing
            failures.append(Failure(case.row, one_line(case.row.image, error)))
            reasons.parent.mkdir(parents=True, exist_ok=True)
            write_failures(reasons, failures)
            with suppress(OSError):  # of a name that no file can have
                inputs.record_file(case.sidecar, job.folder).unlink(missing_ok=True)  # it may be of an earlier scan or label map
        show(n, len(cases))
    if not failures:
        reasons.unlink(missing_ok=True)
    return [failure.reason for failure in failures]


def prefetch(read: Callable[[Case], Any], cases: Iterable[Case]) -> Iterator[tuple[Case, Future]]:
    """Each case with what `read` gives for it, the next one being read meanwhile, and the first one from now on."""
    pool, cases = ThreadPoolExecutor(1), iter(cases)
    submit = lambda case: (case, pool.submit(read, case))  # noqa: E731
    first = next(map(submit, cases), None)

    def each() -> Iterator[tuple[Case, Future]]:
        with pool:
            waiting = first
            while waiting:
                coming = next(map(submit, cases), None)
                yield waiting
                waiting = coming

    return each()


def read_case(job: Job, results: dict[Case, Sidecar], case: Case) -> tuple[str, Any, Any]:
    """What labels are made from, the scan for its pictures, and it standardised; or, where there is a result, its label map's classes.

    Raises InputError for what cannot be segmented, and where somebody else's file would be overwritten.
    """
    from brainseg_jax.data.nifti import read
    from brainseg_jax.inference.segmentation import prepare

    if case.fault:
        raise InputError(case.fault)
    if not case.sidecar.exists() and not job.options.overwrite:
        # Of the table of names no sidecar tells: many scans share it, and an earlier run may have been stopped before the first was done.
        own = [case.labels] if shared_names(case.names) else [case.labels, case.names]
        others = [file for file in own if file.exists()]
        if others and not followed(others[0], case.sidecar):
            lacks = f"without {case.sidecar.name} is not from this command"
            raise InputError(f"{others[0]}: exists, and {lacks}; move it away, or add --overwrite")
    images = case.row.images
    try:
        mark = fingerprint(job, case)
    except OSError:
        mark = ""  # reading says what is wrong
    scan = read(images[0])
    if case in results:
        ready = classes_of(job, case, scan)
    else:
        ready = prepare(job.by, [scan, *map(read, images[1:])], list(map(str, images)))
    return mark, scan if job.options.qc else None, ready


def shared_names(file: Path) -> bool:
    """Whether a file is a table of names as this command writes it."""
    return read_beginning(file, 1000).startswith("\t".join(NAMES).encode())


def classes_of(job: Job, case: Case, scan: Any) -> Any:
    """The classes of a label map that is there, be it as written or corrected by hand. Raises InputError where it cannot be used."""
    import numpy as np

    from brainseg_jax.data.labels import lookup
    from brainseg_jax.data.nifti import read_labels

    try:
        labels = read_labels(case.labels)
    except InputError as refusal:
        raise InputError(f"{cause_of(refusal)}; delete it and run again") from None
    if labels.voxels.shape != scan.voxels.shape or not np.allclose(labels.affine, scan.affine, atol=0.01):
        raise InputError(f"{case.labels}: lies on another grid than its scan; delete it, and it is made again")
    return lookup(labels.voxels, job.table, job.table, str(case.labels))


def followed(file: Path, sidecar: Path) -> bool:
    """Whether the sidecar comes after a file that was written a moment ago, by another process that predicts into the same folder."""
    while not sidecar.exists():
        if not 0 <= time.time() - file.stat().st_mtime < MOMENT:
            return False
        time.sleep(0.1)
    return True


def finish_case(job: Job, case: Case, sidecar: Sidecar | None, mark: str, scan: Any, ready: Any) -> Sidecar:
    """Writes what a scan lacks, each file wholly or not at all, and last its sidecar, which is returned: what has one is done.

    `sidecar` is the sidecar that is there already; `mark`, `scan` and `ready` are what `read_case` gives. Raises InputError where there is
    no brain; nothing is written then.
    """
    import numpy as np

    from brainseg_jax.data import nifti_write
    from brainseg_jax.inference import input_checks, prediction, segmentation
    from brainseg_jax.qc import case_records
    from brainseg_jax.qc.findings import examine

    image, table, cohort = case.row.image, job.table, job.by.cohort()
    if sidecar:
        findings = examine(ready, scan.affine, table, cohort, sidecar["Entropy"])
        now = sidecar | qc_fields(findings, table, [one["soft_ml"] for one in sidecar["Volumes"]])
        now["SHA256"] = sidecar["SHA256"] | {case.labels.name: digest(str(case.labels))}
        if now != sidecar:
            write_json(case.sidecar, now)
        sidecar = now
        case_records.write(case, job.folder, sidecar, scan, ready, table, findings, cohort)
        return sidecar
    classes, ml, found = segmentation.segment(job.by, ready)
    input_checks.check_not_empty(job.by.table, ml, str(image))
    findings = examine(classes, np.array(ready.record["source_affine"]), table, cohort, found.entropy)
    raw = job.source.root if job.source.kind == "bids" else None
    of = [f"bids:raw:{path.relative_to(raw).as_posix()}" if raw else str(path) for path in case.row.images]
    about = {"Sources": of, "SpatialReference": of[0]}
    sidecar = about | {
        "Description": description(job),
        "MadeFrom": mark,
        "Entropy": round(found.entropy, 4),
        "Remarks": ready.record["remarks"],
    }
    sidecar |= qc_fields(findings, table, found.volumes[1:].tolist())
    if job.options.post:
        nifti_write.write_soft(case.soft, segmentation.soft_maps(found, ready), len(found.soft), image)
        names = ["BG", *(s.abbreviation for s in table.structures)]
        write_json(case.soft.with_name(stem(case.soft) + ".json"), about | {"LabelMap": names})
    named = write_names(case.names, table)
    nifti_write.write_like(case.labels, prediction.as_ids(classes, table), image)
    try:
        if job.options.qc:
            case_records.write(case, job.folder, sidecar, scan, classes, table, findings, cohort)
        written = (case.labels, *[case.soft] * job.options.post)
        sidecar["SHA256"] = {file.name: digest(str(file)) for file in written} | {case.names.name: named}
        write_json(case.sidecar, sidecar)
    except BaseException:  # a full disk, Ctrl-C: without a sidecar it would be somebody else's
        case.labels.unlink(missing_ok=True)
        raise
    return sidecar


def description(job: Job) -> str:
    """What made the labels, in a sentence without its end."""
    versions = f"brainseg_jax {brainseg_jax.__version__}, JAX {importlib.metadata.version('jax')}"
    of = job.options.checkpoint or Path(checkpoints(job.options)[0]).name
    mirror = ", left-right flips too" * job.options.tta + ", small components kept" * job.options.keep_small_components
    return f"{len(job.table.structures)} structures ({job.table.name}) by {of}{mirror}; {versions}"
