"""What is written beside label maps: sidecars, tables of names and volumes, and what BIDS asks of derivatives."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import brainseg_jax
from brainseg_jax.core.files import without_formulas, write_table, write_text
from brainseg_jax.data.inputs import Case, Source

VERSION = 4  # of what is written: raise it whenever the same scan and checkpoints would give other labels


NAMES = ("index", "name", "abbreviation", "color")  # as BIDS calls them


COLUMNS = ("subject", "session", "scan", "structure", "id", "voxel_ml", "soft_ml")


Sidecar = dict[str, Any]  # a sidecar's content


def qc_fields(findings: Any, table: Any, soft: list[float]) -> Sidecar:
    """What a sidecar says of the label map that is there now, which may have been corrected by hand, beside the sums of probabilities."""
    volumes = [
        {"structure": structure.name, "id": structure.id, "voxel_ml": round(float(ml), 4), "soft_ml": round(ml_of_soft, 4)}
        for structure, ml, ml_of_soft in zip(table.structures, findings.measures.ml[1:], soft, strict=True)
    ]
    return {"Volumes": volumes, "Score": round(findings.score, 2), "Flags": [flag.words for flag in findings.flags]}


def write_names(file: Path, table: Any) -> str:
    """Writes the table of structures' names, for one label map or for all of a folder, and returns its SHA-256."""
    text = write_table(file, NAMES, without_formulas((s.id, s.name, s.abbreviation, s.colour) for s in table.structures))
    return hashlib.sha256(text.encode()).hexdigest()


def write_volumes(file: Path, results: dict[Case, Sidecar]) -> None:
    """One table of all volumes, a line for each scan and structure: those of its voxels, and the sums of its probability."""
    scans = (((row.subject, row.session, row.image.name), sidecar["Volumes"]) for (row, *_), sidecar in results.items())
    lines = ((*scan, *volume.values()) for scan, volumes in scans for volume in volumes)
    write_table(file, COLUMNS, without_formulas(lines), delimiter_of(file))


def delimiter_of(file: Path) -> str:
    """What separates the cells of a table of this name."""
    return "," if file.suffix == ".csv" else "\t"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes JSON, all or nothing."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_dataset_description(source: Source, folder: Path) -> None:
    """Says that a folder holds BIDS derivatives, and of which data set, unless it says something already."""
    file = folder / "dataset_description.json"
    if not file.exists():
        write_json(
            file,
            {
                "Name": "brainseg_jax segmentations",
                "BIDSVersion": "1.10.0",
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": "brainseg_jax", "Version": brainseg_jax.__version__}],
                "DatasetLinks": {"raw": Path(os.path.relpath(source.root, folder)).as_posix()},
            },
        )


def of_part(file: Path, part: tuple[int, int]) -> Path:
    """A file of the run by the name that parts of a run do not share."""
    return file if part == (1, 1) else file.with_name(f"{file.stem}_part-{part[0]}-of-{part[1]}{file.suffix}")
