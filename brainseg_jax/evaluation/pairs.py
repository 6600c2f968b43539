"""Pairs of prediction and reference: two files, two folders whose files pair up by name, or a table. Ambiguous pairs are refused."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import read_cells
from brainseg_jax.data.layouts import VOLUMES, finder, longest_start, stem, volumes

COLUMNS = ("subject", "pred", "ref")
REMEDY = "tell subjects with --subject-regex, or give a list with --pairs"


class Pair(NamedTuple):
    """The two label maps of a scan, and its name in tables."""

    subject: str
    prediction: Path
    reference: Path


def pair(prediction: Path, reference: Path, subject_regex: str = "") -> tuple[list[Pair], list[Path]]:
    """The pairs of two files or two folders, and the files without a partner.

    In folders, files pair up if their relative paths are equal but for the suffix, or if one begins with the other: "sub-1" with
    "sub-1_seg" and "sub-1/aseg", though not within a word, as in "sub-10"; the longest start counts. With `subject_regex`, only files whose
    path it matches are used, and its first group (or the whole match) must be equal. Raises InputError for a file with two partners, and
    if there are no pairs.
    """
    for path in (prediction, reference):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; check the path")
    if prediction.is_dir() != reference.is_dir():
        raise InputError(f"{prediction} and {reference} are a file and a folder; give two files or two folders")
    if not prediction.is_dir():
        return [Pair(stem(reference), prediction, reference)], []
    sides = tuple(_by_name(folder, subject_regex) for folder in (prediction, reference))
    links = _links(*sides, exact=bool(subject_regex))
    if not links:
        raise InputError(f"{prediction}, {reference}: no two names go together; {REMEDY}")
    unpaired = []
    for side, files in enumerate(sides):
        used = Counter(link[side] for link in links)
        unpaired += [path for name, path in files.items() if name not in used]
        if twice := [name for name in sorted(used) if used[name] > 1]:
            partners = [link[1 - side] for link in sorted(links) if link[side] == twice[0]]
            raise InputError(f"{files[twice[0]]}: {' and '.join(partners[:2])} both fit its name; {REMEDY}")
    return sorted(Pair(min(link, key=len), sides[0][link[0]], sides[1][link[1]]) for link in links), unpaired


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a CSV or TSV file with the columns subject, pred and ref; paths are relative to its folder.

    Raises InputError, naming the line, for an empty cell, and for a subject that is listed twice.
    """
    pairs = []
    for line, cells in read_cells(path, COLUMNS, COLUMNS, "check the path", "pairs"):
        if not all(cells.values()):
            raise InputError(f"{path}: line {line}: a cell each is expected for {', '.join(COLUMNS)}; correct the line")
        pairs.append(Pair(cells["subject"], path.parent / cells["pred"], path.parent / cells["ref"]))
    if twice := [subject for subject, n in Counter(pair.subject for pair in pairs).items() if n > 1]:
        raise InputError(f"{path}: subject {twice[0]!r} is listed twice; give each scan a name of its own")
    return pairs


def _links(predictions: Collection[str], references: Collection[str], exact: bool) -> set[tuple[str, str]]:
    """Pairs of names (prediction, reference)."""
    if exact:
        return {(name, name) for name in predictions if name in references}
    forth = {(name, start) for name in predictions if (start := longest_start(name, references))}
    back = {(start, name) for name in references if (start := longest_start(name, predictions))}
    return forth | back


def _by_name(folder: Path, subject_regex: str) -> dict[str, Path]:
    """The volumes below a folder, by the name that pairs them."""
    subject = finder(subject_regex)
    files: dict[str, Path] = {}
    for path in volumes(folder):
        relative = path.relative_to(folder)
        name = subject(relative) if subject_regex else relative.with_name(stem(relative)).as_posix()
        if name in files:
            raise InputError(f"{path} and {files[name]} are both of {name!r}; {REMEDY}")
        if name:
            files[name] = path
    if not files:
        where = f" in whose path '{subject_regex}' is found" if subject_regex else ""
        raise InputError(f"{folder}: no files ending in {', '.join(VOLUMES)}{where}; check the folder")
    return files
