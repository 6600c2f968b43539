"""A prediction job of many scans: its options and inputs, and which cases earlier runs have finished."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import SEAL, check_regular, read_text
from brainseg_jax.data import case_files
from brainseg_jax.data.case_files import Case, Source
from brainseg_jax.inference.outputs import COLUMNS, VERSION, Sidecar
from brainseg_jax.pretrained import DEFAULT, NETWORKS, network_file


class Job(NamedTuple):
    """The constants of a job: options, source of scans, output folder, and the checkpoints' digests.

    `by`, the predictor, and `table`, whose ids are written, are None if there is nothing to do.
    """

    options: argparse.Namespace
    source: Source
    folder: Path
    digests: tuple[str, ...]
    by: Any = None
    table: Any = None


def checkpoints(options: argparse.Namespace) -> list[str]:
    """The checkpoints of the ensemble; by default a network of the package."""
    own = [str(network_file(name)) for name in options.checkpoint.split(",") if name]
    if own and options.network:
        raise InputError(f"--network {options.network} and --checkpoint {options.checkpoint}: two networks are named; leave one out")
    return own or [str(NETWORKS[options.network] if options.network else DEFAULT)]


def digest(checkpoint: str) -> str:
    """The SHA-256 of a file, or of a checkpoint folder's seal; "" if it cannot be read."""
    try:
        file = Path(checkpoint)
        file = file / SEAL if file.is_dir() else file
        check_regular(file)
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, InputError):
        return ""


def cases_of(job: Job, task: str) -> tuple[Case, ...]:
    """The cases of this part of the job: scans and their output files."""
    return case_files.share(case_files.output_places(job.source, job.options.o, task), job.folder, *job.options.part)


def finished(job: Job) -> dict[Case, Sidecar] | None:
    """The cases and their sidecars if earlier runs have finished all; decided without loading the networks. Else None."""
    for task in case_files.tasks(job.source, job.folder):
        cases = cases_of(job, task)
        sidecars = {case: done(job, case) for case in cases}
        sound = (s and not damage(job, case, s) and not lost_names(case, s) and recorded(job, case) for case, s in sidecars.items())
        if not job.options.overwrite and all(sound):
            return sidecars
    return None


def done(job: Job, case: Case) -> Sidecar | None:
    """The sidecar of a case whose files exist and were made from the same scan, checkpoints and options; else None."""
    try:
        if case.fault or not case.labels.exists() or (job.options.post and not case.soft.exists()):
            return None
        sidecar = json.loads(read_text(case.sidecar))
        kinds = {"Entropy": (int, float), "Score": (int, float), "Remarks": list, "SHA256": dict}
        valid = all(isinstance(sidecar[key], kind) for key, kind in kinds.items())
        valid = valid and all(tuple(volume) == COLUMNS[3:] for volume in sidecar["Volumes"])
        return sidecar if valid and sidecar["MadeFrom"] == fingerprint(job, case) else None
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def damage(job: Job, case: Case, sidecar: Sidecar) -> str:
    """What is wrong with the files of a case that is done according to its sidecar, and the remedy, or "".

    A label map that was corrected by hand is sound. It is only decompressed if its bytes have changed.
    """
    written = sidecar["SHA256"]
    if job.options.post and written.get(case.soft.name, current := digest(str(case.soft))) != current:
        return f"{case.soft}: is not as it was written; delete it and run again"
    if digest(str(case.labels)) == written.get(case.labels.name):
        return ""
    try:
        from brainseg_jax.data.nifti import read_labels

        read_labels(case.labels)
    except InputError as refusal:
        return f"{cause_of(refusal)}; delete it and run again"
    except Exception as error:
        return f"{case.labels}: cannot be read ({type(error).__name__}); delete it and run again"
    return ""


def lost_names(case: Case, sidecar: Sidecar) -> bool:
    """Whether the table of names is missing or has changed since the label map was written."""
    return sidecar["SHA256"].get(case.names.name) != digest(str(case.names))


def cause_of(refusal: InputError) -> str:
    """An error's message without its remedy, which is for scans."""
    return str(refusal).partition(";")[0]


def recorded(job: Job, case: Case) -> bool:
    """Whether the QC report has the case's record, made since the label map was last changed; True without --qc."""
    if not job.options.qc:
        return True
    from brainseg_jax.qc import case_records

    file = case_files.record_file(case.sidecar, job.folder)
    return case_records.valid_record(file, case.sidecar) is not None and file.stat().st_mtime_ns >= case.labels.stat().st_mtime_ns


def fingerprint(job: Job, case: Case) -> str:
    """A hash of what determines the labels: checkpoints, options, and size and time of the scan's files."""
    options, files = job.options, [image.stat() for image in case.row.images]
    facts = [VERSION, job.digests, options.task, options.tta, options.keep_small_components, options.ids]
    facts += [fact for status in files for fact in (status.st_size, status.st_mtime_ns)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
