"""The QC report: all cases of a run in one static HTML file, to view, sort, filter and rate offline.

A case is recorded when it is predicted (`case_record`, JSON-able); the report is made at the end from the records of any number of runs
(`report`). Layout and script are in `assets/`. Names come from files and are not trusted: all text is escaped, and the content security
policy allows only the report's own script.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import check_own, check_place, read_text, write_text
from brainseg_jax.data.labels import Table
from brainseg_jax.data.nifti import Scan
from brainseg_jax.qc.findings import ALL, KINDS, WORST, Findings, Z
from brainseg_jax.qc.mosaic import MM, WINDOW, mosaic

FORMAT = 2  # of a case record: raise it when older ones can no longer be used
SEAL = "sha256"  # the key of a record's checksum in its file
SHOWN = 5  # flags of a case that are shown unfolded
RATINGS = ("good", "doubtful", "bad")
MARK = '<meta name="generator" content="brainseg_jax">'  # identifies a report of this package

CaseRecord = dict[str, Any]


def case_record(
    name: str,
    scan: Scan,
    classes: Integer[np.ndarray, "x y z"],
    table: Table,
    found: Findings,
    *,
    subject: str = "",
    session: str = "",
    soft_ml: Float[np.ndarray, "k"] | None = None,
) -> CaseRecord:
    """The record of a case, JSON-able, about 50 kB. `classes` are on the scan's grid; `name` is unique within the run.

    `subject` defaults to the name; `soft_ml`: volumes by probability (background first), shown beside those by voxels.
    """
    columns = [found.measures.ml, found.z, found.z_scaled]
    columns += [] if soft_ml is None else [np.array([soft_ml[1:].sum(), *soft_ml[1:]])]
    pictures = [
        picture._asdict() | {part: base64.b64encode(getattr(picture, part)).decode() for part in ("scan", "lines")}
        for picture in mosaic(scan, classes, table)
    ]
    return {
        "format": FORMAT,
        "name": _printable(name),
        "subject": _printable(subject or name),
        "session": _printable(session),
        "score": round(found.score, 2),
        "flags": [[flag.kind, flag.structure, round(flag.severity, 2), flag.words] for flag in found.flags],
        "structures": [[ALL, ""], *([s.name, s.colour] for s in table.structures)],
        "values": [[_rounded(column[n]) for column in columns] for n in range(len(columns[0]))],
        "pictures": pictures,
    }


def write_case_record(file: Path, record: CaseRecord) -> None:
    """Writes a record as JSON with a checksum, atomically."""
    write_text(file, json.dumps(record | {SEAL: _seal(record)}))


def read_case_records(files: Iterable[Path]) -> list[CaseRecord]:
    """The records in files of `write_case_record`. Raises InputError, naming the file, for one that is damaged or of another version."""
    records = []
    for file in files:
        try:
            record = json.loads(read_text(file))
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or record.pop(SEAL, "") != _seal(record) or record.get("format") != FORMAT:
            raise InputError(f"{file}: is no case of a report as this version writes it; delete it, and predict that scan again")
        records.append(record)
    return records


def _seal(record: CaseRecord) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def check_place_of_report(file: Path, made: Path) -> None:
    """Raises InputError if the report cannot be written, or the existing file is no report; the folder `made` need not exist yet."""
    folder = file.absolute().parent
    check_own(f"--qc {file}", file, "QC report", MARK)
    if not folder.is_dir() and folder != made:
        raise InputError(f"--qc {file}: there is no folder {folder}; make it, or give another place")
    check_place(file)


def write_report(file: Path, records: Sequence[CaseRecord], title: str, id: str, notes: Sequence[str] = ()) -> None:
    """Writes `report`, atomically."""
    write_text(file, report(records, title, id, notes))


def report(records: Sequence[CaseRecord], title: str, id: str, notes: Sequence[str] = ()) -> str:
    """The HTML of all cases, the worst first, with `notes` above them.

    `id` is the run's, e.g. its folder: the browser stores ratings under it, so they survive when the report is made again. Raises
    InputError for two cases of one name, or of two label tables.
    """
    records = sorted(records, key=lambda record: (-record["score"], record["subject"], record["session"], record["name"]))
    structures = records[0]["structures"] if records else []
    names = set()
    for record in records:
        if record["name"] in names:
            raise InputError(f"two cases are called {record['name']!r}; give each its own name")
        if record["structures"] != structures:
            raise InputError(f"{record['name']} has other structures than {records[0]['name']}; make a report for each label table")
        names.add(record["name"])
    number = {name: n for n, (name, _) in enumerate(structures)}
    data = {
        "id": hashlib.sha256(id.encode(errors="replace")).hexdigest()[:16],
        "title": _printable(title),
        "ratings": RATINGS,
        "kinds": list(KINDS),
        "structures": structures,
        "z": Z,
        "cases": [
            {key: record[key] for key in ("name", "subject", "session", "score", "values")}
            | {"flags": [[kind, number[structure]] for kind, structure, _, _ in record["flags"]]}
            for record in records
        ],
    }
    files = resources.files(__package__) / "assets"
    skeleton, css, script = ((files / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js"))
    parts = {
        "title": escape(_printable(title)),
        "mark": MARK,
        "policy": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "css": css,
        "notes": "".join(f"<p class=note>{escape(_printable(note))}</p>" for note in notes),
        "window": escape(" × ".join(map(str, WINDOW))),
        "mm": f"{MM:g}",
        "kinds": "".join(f"<dt>{kind}</dt><dd>{escape(words)}</dd>" for kind, words in KINDS.items()),
        "colours": "".join(f'<li><i style="background:{escape(colour)}"></i>{escape(name)}</li>' for name, colour in structures[1:]),
        "cases": "\n".join(_article(n, record) for n, record in enumerate(records)),
        # No "<" in it, so that no name can end the element.
        "data": json.dumps(data).replace("<", "\\u003c"),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], skeleton)  # one pass: inserted text is not substituted


def _article(n: int, record: CaseRecord) -> str:
    subject = escape(record["subject"])
    session = f" <small><bdi>{escape(record['session'])}</bdi></small>" if record["session"] else ""
    file = f"<p class=name><bdi>{escape(record['name'])}</bdi></p>" if record["name"] != record["subject"] else ""
    flags = [
        f"<li{' class=worst' * (severity >= WORST)}><b>{escape(kind)}</b> <span>{escape(words)}</span></li>"
        for kind, _, severity, words in record["flags"]
    ]
    more = f"<details><summary>{len(flags) - SHOWN} more</summary><ul>{''.join(flags[SHOWN:])}</ul></details>" if flags[SHOWN:] else ""
    buttons = "".join(f"<button type=button data-rating={r} aria-pressed=false>{r}</button>" for r in RATINGS)
    return f"""<article data-case={n} tabindex=-1 aria-labelledby=case{n}>
<header><h2 id=case{n}><bdi>{subject}</bdi>{session}</h2>{file}
<span class=value></span><span class=score>score {record["score"]:.1f}</span></header>
<div class=strip>{"".join(_figure(picture, subject) for picture in record["pictures"])}</div>
<div class=below><div class=flags><ul>{"".join(flags[:SHOWN]) or "<li class=none>no flags</li>"}</ul>{more}</div>
<div class=rate role=group aria-label="Rating of {subject}">{buttons}<input type=text placeholder=comment aria-label="Comment on {subject}">
<details class=volumes><summary>volumes</summary></details></div></div></article>"""


def _figure(picture: dict[str, Any], subject: str) -> str:
    size = f"width={int(picture['width'])} height={int(picture['height'])} decoding=async"
    alt = f"{subject}: three {escape(picture['plane'])} slices of the scan"
    return (
        f'<figure><img {size} alt="{alt}" src="data:image/jpeg;base64,{escape(picture["scan"])}">'
        f'<img {size} class=lines alt="" src="data:image/png;base64,{escape(picture["lines"])}"></figure>'
    )


def _printable(text: str) -> str:
    """The text with control characters and undecodable bytes of file names replaced, which HTML and UTF-8 cannot hold."""
    return re.sub("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def _rounded(value: float) -> float | None:
    """The value to four digits; None for NaN, which JSON lacks."""
    return float(f"{value:.4g}") if np.isfinite(value) else None
