"""What the QC report shows of a folder of label maps: a record for each case, beside them, and the report made of all that are there.

A record names what its label map was made from, and is shown of no other.
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
from brainseg_jax.data import inputs
from brainseg_jax.data.inputs import Case
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
    """Writes what the report shows of a case: pictures, volumes and flags. `sidecar` is its sidecar; `classes` are on the scan's grid."""
    soft = np.array([0, *(volume["soft_ml"] for volume in sidecar["Volumes"])], np.float64)
    name, row = case.labels.relative_to(folder).as_posix(), case.row
    shown = report.case_record(name, scan, classes, table, found, subject=row.subject, session=row.session, soft_ml=soft)
    people = max((n for *_, n in (cohort or {}).values()), default=0)
    own = {"made_from": sidecar["MadeFrom"], "by": sidecar["Description"], "people": people, "image": str(row.image)}
    report.write_case_record(inputs.record_file(case.sidecar, folder), shown | own)


def valid_record(record: Path, sidecar: Path) -> dict[str, Any] | None:
    """What the report shows of a case, from its file; None unless it is of this version, and of the label map that is there."""
    try:
        (found,) = report.read_case_records([record])
        return found if found["made_from"] == json.loads(read_text(sidecar))["MadeFrom"] else None
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return None


def write_report(file: Path, folder: Path, cases: Iterable[Case]) -> str:
    """Writes the report of all cases in the folder, whichever runs made them, that have the label table of these; says what it shows."""
    ours, files = {inputs.record_file(case.sidecar, folder) for case in cases}, None
    # Until no other part has added to them meanwhile: so the last to write has seen all.
    while files != (files := list(inputs.record_files(folder))):
        found = {record: shown for record, sidecar in files if (shown := valid_record(record, sidecar))}
        first = next((shown for record, shown in found.items() if record in ours), next(iter(found.values()), None))
        records = [shown for shown in found.values() if shown["structures"] == first["structures"]]
        report.write_report(file, records, folder.name, str(folder), notes(folder, records, len(files) - len(records)))
    return f"{_cases(len(records))}, {sum(bool(shown['flags']) for shown in records)} with flags"


def notes(folder: Path, records: list[dict[str, Any]], left_out: int) -> list[str]:
    """What the report says above its cases: what made them, what they are compared with, and what is not there."""
    lines = []
    for (by, people), n in Counter((shown["by"], shown["people"]) for shown in records).most_common():
        cohort = f"compared with a cohort of {people} people" if people else "no cohort is known, so no volume has a z-score"
        few = f", too few for z-scores ({FEWEST} are needed)" if 0 < people < FEWEST else ""
        lines.append(f"{by}: {_cases(n)}, {cohort}{few}.")
    reasons = [read_text(file) for name in inputs.FAILURES for file in folder.glob(name)]
    failed = {row["image"] for text in reasons for row in csv.DictReader(text.splitlines())} - {shown["image"] for shown in records}
    if failed:
        lines.append(f"Not here, since they could not be segmented: {_cases(len(failed))}; failures*.csv beside the label maps says why.")
    if left_out:
        lines.append(f"Not here, since they have other structures, or label maps made since without --qc: {_cases(left_out)}.")
    return lines


def _cases(n: int) -> str:
    return f"{n} case{'s' * (n != 1)}"
