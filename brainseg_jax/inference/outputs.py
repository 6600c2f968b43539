"""Files beside label maps: sidecars, tables of names and volumes, and the dataset description of BIDS derivatives."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import brainseg_jax
from brainseg_jax.core.files import without_formulas, write_table, write_text
from brainseg_jax.data.case_files import Case, Source

VERSION = 4  # raise it whenever the same scan and checkpoints would give other labels
NAMES = ("index", "name", "abbreviation", "color")  # columns of BIDS
COLUMNS = ("subject", "session", "scan", "structure", "id", "voxel_ml", "soft_ml")

Sidecar = dict[str, Any]


def qc_fields(findings: Any, table: Any, soft: list[float]) -> Sidecar:
    """A sidecar's fields on the current label map, which may have been corrected by hand; `soft`: ml of each structure by probability."""
    volumes = [
        {"structure": structure.name, "id": structure.id, "voxel_ml": round(float(ml), 4), "soft_ml": round(ml_of_soft, 4)}
        for structure, ml, ml_of_soft in zip(table.structures, findings.measures.ml[1:], soft, strict=True)
    ]
    return {"Volumes": volumes, "Score": round(findings.score, 2), "Flags": [flag.words for flag in findings.flags]}


def write_names(file: Path, table: Any) -> str:
    """Writes the table of structures, for a label map or for all of a folder, and returns its SHA-256."""
    text = write_table(file, NAMES, without_formulas((s.id, s.name, s.abbreviation, s.colour) for s in table.structures))
    return hashlib.sha256(text.encode()).hexdigest()


def write_volumes(file: Path, results: dict[Case, Sidecar]) -> None:
    """Writes the table of volumes in ml, one line per scan and structure: by voxels, and by the sum of probabilities."""
    scans = (((row.subject, row.session, row.image.name), sidecar["Volumes"]) for (row, *_), sidecar in results.items())
    lines = ((*scan, *volume.values()) for scan, volumes in scans for volume in volumes)
    write_table(file, COLUMNS, without_formulas(lines), delimiter_of(file))


def delimiter_of(file: Path) -> str:
    """The delimiter of a table, by its suffix."""
    return "," if file.suffix == ".csv" else "\t"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes JSON atomically."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_dataset_description(source: Source, folder: Path) -> None:
    """Writes dataset_description.json of BIDS derivatives, with a link to the raw data set, unless the file exists."""
    description = {
        "Name": "brainseg_jax segmentations",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "brainseg_jax", "Version": brainseg_jax.__version__}],
        "DatasetLinks": {"raw": Path(os.path.relpath(source.root, folder)).as_posix()},
    }
    if not (file := folder / "dataset_description.json").exists():
        write_json(file, description)


def of_part(file: Path, part: tuple[int, int]) -> Path:
    """The file's name for one part of a job, or the file itself if the job has one part."""
    return file if part == (1, 1) else file.with_name(f"{file.stem}_part-{part[0]}-of-{part[1]}{file.suffix}")
