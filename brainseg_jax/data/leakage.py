"""Checks for leakage between train, val and test: one subject spelt in two ways, one image under two names."""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from brainseg_jax.core.errors import InputError, first_few
from brainseg_jax.data.manifest import Row

SIDES = ("train", "val", "test")
PIECE = 2**12  # bytes from the middle of files of equal size, compared first
T = TypeVar("T")


def check_leakage(rows: Sequence[Row], source: str | Path) -> list[str]:
    """Warnings, a line each: subjects spelt in two ways, and images shared by two rows.

    Raises InputError, naming `source`, for an image, or a label map for synthetic scans, on two sides of the split. Files are compared
    by their bytes, and read only if their sizes are equal; missing files are ignored.
    """
    images = [(i, file) for i, row in enumerate(rows) for file in row.images]
    lines = [*_spellings(rows, source), *shared(rows, _same_files(images), source)]
    if any(row.labels_only for row in rows):
        # A scan's labels may be listed again on purpose, for synthetic scans; and several scans may have the same ones.
        groups = _same_files([(i, file) for i, row in enumerate(rows) for file in row.labels])
        shared(rows, (group for group in groups if any(rows[i].labels_only for i in group)), source, "label map")
    return lines


def shared(rows: Sequence[Row], groups: Iterable[Sequence[int]], source: str | Path, what: str = "image") -> list[str]:
    """A warning for each group of rows, given by number, with the same image. Raises InputError for a group on two sides of the split."""
    lines = []
    for group in groups:
        members = [rows[i] for i in group]
        shown = first_few(f"{row.image} ({row.subject}{f', {row.split}' * bool(row.split)})" for row in members)
        if len({row.split for row in members} & set(SIDES)) > 1:
            raise InputError(
                f"{source}: the same {what} is on two sides of the split: {shown}; keep one of them, or give all of them one side"
            )
        lines.append(f"{source}: the same {what} stands in {len(members)} rows: {shown}; keep one of them")
    return lines


def _spellings(rows: Sequence[Row], source: str | Path) -> list[str]:
    subjects = sorted({row.person for row in rows})
    groups = _groups(subjects, lambda person: tuple(map(_folded, person)))
    if not groups:
        return []
    # In ASCII, since the spellings may look the same.
    show = lambda group: " and ".join(ascii(subject) + f" of {name!a}" * bool(name) for name, subject in group)  # noqa: E731
    named = first_few((show([subjects[i] for i in group]) for group in groups), 5)
    return [
        f'{source}: may be one person each, equal but for case, "sub-", leading zeros or accents\' coding: {named}; write a person and a '
        "data set in one way, or train and test may share people"
    ]


def _folded(name: str) -> str:
    """A name without case, prefix "sub-", leading zeros and differences in Unicode form."""
    name = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"^sub[-_ ]?(?=.)", "", name))


def _same_files(files: Sequence[tuple[int, Path]]) -> list[list[int]]:
    """The numbers of rows with the same file content, given (row number, file) pairs."""
    groups = [[(i, file) for i, file in files if _size(file)]]
    for mark in (_size, _piece, _content):
        groups = [[group[k] for k in part] for group in groups for part in _groups([file for _, file in group], mark)]
    numbers = (sorted({i for i, _ in group}) for group in groups)
    return [group for group in numbers if len(group) > 1]


def _groups(items: Sequence[T], mark: Callable[[T], Hashable]) -> list[list[int]]:
    """The indices of items with equal marks, in groups of two or more."""
    groups = defaultdict(list)
    for i, item in enumerate(items):
        groups[mark(item)].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _piece(file: Path) -> Hashable:
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, _size(file) // 2 - PIECE // 2))
            return stream.read(PIECE)
    except OSError:
        return str(file)  # unique


def _content(file: Path) -> Hashable:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError:
        return str(file)
