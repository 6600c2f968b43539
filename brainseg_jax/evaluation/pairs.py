"""Predictions and references of the same scans: two files, two folders whose files pair up by name, or a list.

A file that could belong to two others is refused rather than guessed.
"""

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
    """Two label maps of one scan, and what it is called in tables."""

    subject: str
    prediction: Path
    reference: Path


def pair(prediction: Path, reference: Path, subject_regex: str = "") -> tuple[list[Pair], list[Path]]:
    """The pairs of two files, or of two folders; and the files in them that have no partner.

    In folders, files pair up whose paths below the two are equal but for the suffix, or one of which goes on from the other: "sub-1" in
    "sub-1_seg" and in "sub-1/aseg", though never within a word, as in "sub-10"; the longest start counts. With `subject_regex`, files are
    those in whose path it is found, and its first group (all of it, if it has none) has to be equal. Raises InputError where a file has
    two partners, or there are no pairs.
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
    alone = []
    for side, files in enumerate(sides):
        used = Counter(link[side] for link in links)
        alone += [path for name, path in files.items() if name not in used]
        if twice := [name for name in sorted(used) if used[name] > 1]:
            partners = [link[1 - side] for link in sorted(links) if link[side] == twice[0]]
            raise InputError(f"{files[twice[0]]}: {' and '.join(partners[:2])} both fit its name; {REMEDY}")
    return sorted(Pair(min(link, key=len), sides[0][link[0]], sides[1][link[1]]) for link in links), alone


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a CSV or TSV file with the columns subject, pred and ref; paths are taken from its own folder.

    Raises InputError, naming the line, for anything else.
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
    """Names that go together, the prediction's first."""
    if exact:
        return {(name, name) for name in predictions if name in references}
    forth = {(name, start) for name in predictions if (start := longest_start(name, references))}
    back = {(start, name) for name in references if (start := longest_start(name, predictions))}
    return forth | back


def _by_name(folder: Path, subject_regex: str) -> dict[str, Path]:
    """The volumes below a folder by what they are paired by."""
    subject = finder(subject_regex)
    found: dict[str, Path] = {}
    for path in volumes(folder):
        place = path.relative_to(folder)
        name = subject(place) if subject_regex else place.with_name(stem(place)).as_posix()
        if not name:
            continue
        if name in found:
            raise InputError(f"{path} and {found[name]} are both of {name!r}; {REMEDY}")
        found[name] = path
    if not found:
        where = f" in whose path '{subject_regex}' is found" if subject_regex else ""
        raise InputError(f"{folder}: no files ending in {', '.join(VOLUMES)}{where}; check the folder")
    return found
