"""Case records of the QC report, stored beside the label maps, and the report of all records in a folder.

A record holds the fingerprint of its label map, and is not shown for any other.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import read_text
from brainseg_jax.data import case_files
from brainseg_jax.data.case_files import Case
from brainseg_jax.data.labels import Table
from brainseg_jax.data.nifti import Scan
from brainseg_jax.qc import report
from brainseg_jax.qc.findings import FEWEST, Cohort, Findings


def write(
    case: Case,
    folder: Path,
    sidecar: dict[str, Any],
    scan: Scan,
    classes: Integer[np.ndarray, "x y z"],
    table: Table,
    found: Findings,
    cohort: Cohort | None,
) -> None:
    """Writes the record of a case: pictures, volumes and flags. `sidecar` is the label map's; `classes` are on the scan's grid."""
    soft = np.array([0, *(volume["soft_ml"] for volume in sidecar["Volumes"])], np.float64)
    name, row = case.labels.relative_to(folder).as_posix(), case.row
    record = report.case_record(name, scan, classes, table, found, subject=row.subject, session=row.session, soft_ml=soft)
    subjects = max((n for *_, n in (cohort or {}).values()), default=0)
    record |= {"made_from": sidecar["MadeFrom"], "by": sidecar["Description"], "people": subjects, "image": str(row.image)}
    report.write_case_record(case_files.record_file(case.sidecar, folder), record)


def valid_record(record: Path, sidecar: Path) -> dict[str, Any] | None:
    """A case's record from its file; None unless it is of this version and of the current label map."""
    try:
        (content,) = report.read_case_records([record])
        return content if content["made_from"] == json.loads(read_text(sidecar))["MadeFrom"] else None
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return None


def write_report(file: Path, folder: Path, cases: Iterable[Case]) -> str:
    """Writes the report of all cases in the folder, of any run, that have the label table of `cases`. Returns a line on what it shows."""
    own, files = {case_files.record_file(case.sidecar, folder) for case in cases}, None
    # Repeated if another part of the job has added records meanwhile: so the last part to write includes all.
    while files != (files := list(case_files.record_files(folder))):
        valid = {file: record for file, sidecar in files if (record := valid_record(file, sidecar))}
        first = next((record for file, record in valid.items() if file in own), next(iter(valid.values()), None))
        records = [record for record in valid.values() if record["structures"] == first["structures"]]
        report.write_report(file, records, folder.name, str(folder), notes(folder, records, len(files) - len(records)))
    return f"{_cases(len(records))}, {sum(bool(record['flags']) for record in records)} with flags"


def notes(folder: Path, records: list[dict[str, Any]], left_out: int) -> list[str]:
    """The lines above the cases of the report: what made them, their cohort, and which cases are missing."""
    lines = []
    for (by, subjects), n in Counter((record["by"], record["people"]) for record in records).most_common():
        cohort = f"compared with a cohort of {subjects} people" if subjects else "no cohort is known, so no volume has a z-score"
        few = f", too few for z-scores ({FEWEST} are needed)" if 0 < subjects < FEWEST else ""
        lines.append(f"{by}: {_cases(n)}, {cohort}{few}.")
    reasons = [read_text(file) for name in case_files.FAILURES for file in folder.glob(name)]
    failed = {row["image"] for text in reasons for row in csv.DictReader(text.splitlines())} - {record["image"] for record in records}
    if failed:
        lines.append(f"Not here, since they could not be segmented: {_cases(len(failed))}; failures*.csv beside the label maps says why.")
    if left_out:
        lines.append(f"Not here, since they have other structures, or label maps made since without --qc: {_cases(left_out)}.")
    return lines


def _cases(n: int) -> str:
    return f"{n} case{'s' * (n != 1)}"
