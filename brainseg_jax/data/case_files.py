"""The inputs of prediction (a scan, a folder, a list, a BIDS data set), and the output files of each scan.

Outputs of a BIDS data set are BIDS derivatives; those of a folder keep its tree; those of a list lie in a flat folder.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import missing_file, safe_name, shorten_name
from brainseg_jax.data.layouts import VOLUMES, bids, bids_scans, enhanced, folder, is_output, stem
from brainseg_jax.data.manifest import Row, read_manifest

# BIDS entities that come after `seg` in a name.
AFTER_SEG = ("scale", "res", "den", "label", "prov", "desc")
LONGEST = 200  # bytes of a name without endings
FAILURES = ("failures.csv", "failures_part-*-of-*.csv")  # scans without outputs, with reasons: of a run, of its parts
QC = "qc"  # the subfolder of the outputs with each case's record for the QC report


class Source(NamedTuple):
    """The scans of an input, their root folder, the kind of input, and a BIDS data set's contrast-enhanced scans that were left out."""

    rows: tuple[Row, ...]
    root: Path
    kind: Literal["scan", "folder", "list", "bids"]
    left_out: tuple[Path, ...] = ()


class Case(NamedTuple):
    """A scan and its output files: label map, soft maps, and a table of names, which cases may share. With a `fault`, the reason, nothing
    is written."""

    row: Row
    labels: Path
    soft: Path
    names: Path
    fault: str = ""

    @property
    def sidecar(self) -> Path:
        """The sidecar file with provenance and volumes."""
        return self.labels.with_name(stem(self.labels) + ".json")


def find(path: Path, also: Sequence[Path] = (), contrast_enhanced: bool = False) -> Source:
    """The scans of an input path. Raises InputError if there are none.

    A folder is a BIDS data set if it has a dataset_description.json or BIDS's layout; a .csv or .tsv file is a manifest. `also`: further
    images of the same heads, for each channel after the first a file or, for a folder of scans, a folder with the same names and layout.
    """
    given = Path(os.path.normpath(path.absolute()))
    source = _find(given, contrast_enhanced)
    if contrast_enhanced and source.kind != "bids":
        raise InputError(f"--contrast-enhanced: tells scans of a BIDS data set apart by their names, and --i {given} is none; leave it out")
    beside = tuple(Path(os.path.normpath(other.absolute())) for other in also)
    if not beside:
        return source
    if source.kind in ("list", "bids"):
        raise InputError(f"--also {also[0]}: goes with a scan or a folder; give a list that names a subject's images, separated by ';'")
    what = "folder" if source.kind == "folder" else "file"
    for n, other in enumerate(beside):
        if not (other.is_dir() if what == "folder" else other.is_file()):
            raise InputError(f"--also {other}: no such {what}; beside --i {given} it has to be one")
        if other in (given, *beside[:n]):
            raise InputError(f"--also {other}: is given twice; give each image of a subject once")
    if source.kind == "scan":
        return source._replace(rows=(source.rows[0]._replace(also=beside),))
    rows = (row for row in source.rows if not any(map(row.image.is_relative_to, beside)))
    rows = tuple(row._replace(also=tuple(other / row.image.relative_to(given) for other in beside)) for row in rows)
    if not rows:
        raise InputError(f"--i {given}: no scans found outside --also; check the two paths")
    return source._replace(rows=rows)


def _find(path: Path, contrast_enhanced: bool) -> Source:
    if path.is_dir():
        if (path / "dataset_description.json").exists() or any(bids_scans(path)):
            left_out = () if contrast_enhanced else tuple(enhanced(path))
            return Source(bids(path, contrast_enhanced=contrast_enhanced), path, "bids", left_out)
        return Source(folder(path), path, "folder")
    if not path.exists():
        raise InputError(f"--i {missing_file(path) if path.is_symlink() else f'{path}: no such file or folder; check the path'}")
    if path.name.endswith(VOLUMES):
        if is_output(path):
            raise InputError(f"--i {path}: is a label map that this command wrote, as {stem(path)}.json beside it says; give the scan")
        return Source((Row(stem(path), "", path, (), (), "", ""),), path.parent, "scan")
    if path.suffix in (".csv", ".tsv"):
        rows = tuple(row for row in read_manifest(path) if not row.labels_only)
        if not rows:
            raise InputError(f"--i {path}: lists labels only, and no image to segment; add scans")
        return Source(rows, path.parent, "list")
    raise InputError(f"--i {path}: give a scan ({', '.join(VOLUMES)}), a folder, a list of scans (.csv or .tsv), or a BIDS data set")


def output_places(source: Source, out: Path, task: str) -> tuple[Case, ...]:
    """The cases of the scans with outputs in the folder `out`, which for one scan may be the name of its label map instead.

    Label maps of MGH scans are .mgz, others .nii.gz. Outputs of an earlier run in the same tree are no scans. Scans with the same output
    file have a fault. Raises InputError if an output would overwrite a scan.
    """
    out = Path(os.path.normpath(out.absolute()))
    one_file = out.name.endswith(VOLUMES)
    if one_file and source.kind != "scan":
        raise InputError(f"--o {out}: is the name of one file, and --i may hold many scans; give a folder")
    if out.is_file() and not one_file:
        raise InputError(f"--o {out}: is a file; give a folder, or a name that ends in .nii.gz or .mgz")
    if source.kind == "bids" and out == source.root:
        raise InputError(f"--o {out}: is the data set itself; give a folder for derivatives, e.g. {out / 'derivatives' / 'brainseg_jax'}")
    if one_file:
        name = stem(out)
        cases = [Case(source.rows[0], out, out.with_name(f"{name}_post.nii.gz"), out.with_name(f"{name}.tsv"))]
    else:
        cases = [_case(row, source, out, task) for row in source.rows]
    if source.kind == "folder":
        written = {path for case in cases for path in (case.labels, case.soft)}
        below = out.is_relative_to(source.root) and out != source.root
        cases = [case for case in cases if case.row.image not in written and not (below and case.row.image.is_relative_to(out))]
    if not cases:
        raise InputError(f"--i {source.root}: no scans found outside {out}; give another --o")
    owners: dict[Path, list[Path]] = defaultdict(list)
    scans = {image for case in cases for image in case.row.images}
    for case in cases:
        for path in (case.labels, case.soft):
            if path in scans:
                raise InputError(f"--o {out}: {path} would be written over a scan; give another folder or name")
            owners[path].append(case.row.image)

    def fault(case: Case) -> str:
        others = [image for path in (case.labels, case.soft) for image in owners[path] if image != case.row.image]
        return f"{case.row.image}: {others[0]} would have the same label map; rename or remove one of the two" if others else ""

    return tuple(case._replace(fault=fault(case)) for case in cases)


def tasks(source: Source, out: Path) -> list[str]:
    """The possible values of `task` in `output_places` of earlier runs: for BIDS from names in `out`, otherwise it has no effect."""
    names = (re.search(r"_seg-([0-9a-zA-Z]+)_", path.name) for path in out.rglob("sub-*_dseg.json")) if source.kind == "bids" else ()
    return sorted({""} | {name[1] for name in names if name})


def record_file(sidecar: Path, out: Path) -> Path:
    """The file of a case's record for the QC report."""
    return out / QC / sidecar.relative_to(out).with_name(f"{sidecar.stem}_qc.json")


def record_files(out: Path) -> Iterator[tuple[Path, Path]]:
    """All QC records of an output folder, from any run, each with its case's sidecar."""
    for path in sorted((out / QC).rglob("*_qc.json")):
        yield path, out / path.relative_to(out / QC).with_name(path.name.removesuffix("_qc.json") + ".json")


def share(cases: tuple[Case, ...], out: Path, part: int, parts: int) -> tuple[Case, ...]:
    """Part 1 … `parts` of the cases, by a hash of the label map's path below `out`, so that jobs are independent of one another."""

    def number(case: Case) -> int:
        place = case.labels.relative_to(os.path.normpath(out.absolute())).as_posix()
        return int.from_bytes(hashlib.sha256(os.fsencode(place)).digest()[:8], "big") % parts

    return tuple(case for case in cases if number(case) == part - 1)


def _case(row: Row, source: Source, out: Path, task: str) -> Case:
    name, ending = stem(row.image), ".mgz" if row.image.suffix in (".mgz", ".mgh") else ".nii.gz"
    if source.kind == "bids":
        entities = name.split("_")[:-1]
        last = [entity for entity in entities if entity.partition("-")[0] in AFTER_SEG]
        first = [entity for entity in entities if entity not in last]
        name = "_".join([*first, f"seg-{re.sub('[^0-9a-zA-Z]', '', task)}", *last])
        where, name = out / row.image.relative_to(source.root).parent, shorten_name(name, LONGEST)
        return Case(row, where / f"{name}_dseg{ending}", where / f"{name}_probseg.nii.gz", where / f"{name}_dseg.tsv")
    if source.kind == "list":
        # File names of a manifest are unique only together with data set, subject and session.
        person = "_".join(filter(None, (row.subject, row.session)))
        name = safe_name(name if name.startswith(person) else f"{person}_{name}", LONGEST)
        where = out / safe_name(row.dataset)
    else:
        where, name = out / row.image.relative_to(source.root).parent, shorten_name(name, LONGEST)
    return Case(row, where / f"{name}_seg{ending}", where / f"{name}_post.nii.gz", out / "seg_labels.tsv")
