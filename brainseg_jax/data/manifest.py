"""The manifest, one line per scan (subject, image, labels, split), and splits that keep each subject on one side.

Rule "paper" samples images as the paper does (section IV-A), but by hashes of names, so that a split depends on no row order and no
library.
"""

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

from brainseg_jax.core.errors import InputError, did_you_mean
from brainseg_jax.core.files import read_cells, table_text, write_table, write_text

COLUMNS = ("subject", "session", "image", "labels", "scheme", "dataset", "split", "source")
LISTS = ("image", "labels", "scheme")  # columns that may hold several, separated by ";"
SPLIT_COLUMNS = ("dataset", "subject", "session", "image", "split")
SOURCES = ("", SYNTH := "synth")  # a scan; labels only, for synthetic scans
SPLITS = ("train", "val", "test", "excluded", "")
# In the paper 30 % are validation and test set, divided 858 to 1717.
FRACTIONS = {"subject": (0.7, 0.1, 0.2), "paper": (0.7, 0.3 * 858 / 2575, 0.3 * 1717 / 2575)}


class Row(NamedTuple):
    """One scan. Paths are absolute; `scheme` has the label table of each of `labels`, or is empty.

    `also`: further images of the same head (e.g. FLAIR beside T1), one for each channel after the first, in the order of the channels.
    `labels_only`: there is no image, and `image` is the first label map, from which scans are synthesised.
    """

    subject: str
    session: str
    image: Path
    labels: tuple[Path, ...]
    scheme: tuple[str, ...]
    dataset: str
    split: str
    also: tuple[Path, ...] = ()
    labels_only: bool = False

    @property
    def images(self) -> tuple[Path, ...]:
        """The image of each channel; labels are on the grid of the first."""
        return self.image, *self.also

    @property
    def person(self) -> tuple[str, str]:
        """The subject, unique across data sets."""
        return self.dataset, self.subject

    @property
    def hashed(self) -> str:
        """The hash of the subject by which checkpoints record whom they were trained on: 16 hex digits."""
        return hashlib.sha256("/".join(self.person).encode()).hexdigest()[:16]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The scan's name, independent of its folder: dataset, subject, session, file name of the first image."""
        return self.dataset, self.subject, self.session, self.image.name


def read_manifest(path: str | Path) -> tuple[Row, ...]:
    """The rows of a CSV or TSV file in UTF-8, in its order. Paths, also of label tables, are relative to its folder, and need not exist.

    Raises InputError, naming line or column and the remedy, for unknown or missing columns, missing values, unknown splits, labels without
    schemes, a duplicate image, rows with different numbers of images, and a subject in two splits.
    """
    path = Path(path)
    folder = path.parent.absolute()
    rows = []
    for line, cells in _table(path, COLUMNS, required=("subject", "image")):
        images, labels, scheme = (tuple(map(str.strip, cells[name].split(";"))) if cells[name] else () for name in LISTS)
        if cells["source"] not in SOURCES:
            raise InputError(f"{path}: line {line}: source {cells['source']!r} is unknown; leave it empty, or use {SYNTH}")
        if labels_only := cells["source"] == SYNTH:
            if images or not (labels and scheme):
                raise InputError(
                    f"{path}: line {line}: source {SYNTH} is for labels and their scheme without an image; fill in these two only"
                )
            images = labels[:1]
        for name, value in (("subject", cells["subject"]), *product(["image"], images or ("",)), *product(["labels"], labels)):
            if not value:
                raise InputError(f"{path}: line {line}: {name} is empty; fill it in or remove the line")
        (image, *also), labels = ([Path(os.path.normpath(folder / name)) for name in names] for names in (images, labels))
        # A scheme without labels is ignored, since users fill the column from top to bottom.
        scheme = tuple(os.path.normpath(folder / name) if name.endswith(".tsv") else name for name in scheme) if labels else ()
        if scheme and len(scheme) != len(labels):
            raise InputError(f"{path}: line {line}: {len(labels)} labels but {len(scheme)} schemes; give each label file its scheme")
        subject, session, dataset, split = (cells[name] for name in ("subject", "session", "dataset", "split"))
        rows.append(Row(subject, session, image, tuple(labels), scheme, dataset, split, tuple(also), labels_only))
    check_rows(rows, path)
    return tuple(rows)


def write_manifest(path: str | Path, rows: Iterable[Row]) -> None:
    """Writes rows as TSV, atomically; paths below the manifest's folder or its parent become relative, so that both can be moved.

    Raises InputError for rows that `read_manifest` refuses.
    """
    path, rows = Path(path), tuple(rows)
    check_rows(rows, path)
    folder = path.parent.absolute()
    root = folder.parent if folder.parent != Path(folder.anchor) else folder

    def spell(file: Path) -> str:
        file = file.absolute()
        text = Path(os.path.relpath(file, folder)).as_posix() if file.is_relative_to(root) else str(file)
        if ";" in text:
            raise InputError(f"{file}: ';' separates files in a manifest; rename the file or folder")
        return text

    lines = []
    for row in rows:
        scheme = (spell(Path(name)) if name.endswith(".tsv") else name for name in row.scheme)
        files = (*(";".join(map(spell, paths)) for paths in (() if row.labels_only else row.images, row.labels)), ";".join(scheme))
        lines.append((row.subject, row.session, *files, row.dataset, row.split, SYNTH * row.labels_only))
    width = len(COLUMNS) if any(row.labels_only for row in rows) else COLUMNS.index("source")
    write_table(path, COLUMNS[:width], [line[:width] for line in lines])


def check_rows(rows: Sequence[Row], source: str | Path) -> None:
    """Raises InputError, naming `source` and the row, for an unknown split, the names "." and "..", a duplicate image or key, another
    number of images than in the first row, or a subject in two of train, val, test."""
    if not rows:
        raise InputError(f"{source}: no scans; add at least one line below the header")
    images, keys, sides = set(), {}, {}
    for row in rows:
        if row.split not in SPLITS:
            hint = f"{did_you_mean(row.split, SPLITS)}; use one of {', '.join(name or 'empty' for name in SPLITS)}"
            raise InputError(f"{source}: split {row.split!r} of {row.image} is unknown{hint}")
        if dots := {".", ".."} & {row.subject, row.session, row.dataset}:
            raise InputError(f"{source}: {min(dots)!r} of {row.image} is no name of a subject, session or data set; give it another")
        for image in row.images:
            if image in images:
                raise InputError(f"{source}: image {image} is listed twice; remove one of the two")
            images.add(image)
        if len(row.images) != len(rows[0].images):
            raise InputError(
                f"{source}: column image has {len(row.images)} files with {row.image} and {len(rows[0].images)} with {rows[0].image}; "
                "give every row as many, in the same order"
            )
        if row.key in keys:
            raise InputError(
                f"{source}: subject {row.subject!r} has two scans called {row.image.name} in session {row.session!r}, {keys[row.key]} and "
                f"{row.image}; give each its session, its subject (prepare_data's --subject-regex) or a name of its own"
            )
        if row.split in ("train", "val", "test") and sides.setdefault(row.person, row.split) != row.split:
            raise InputError(
                f"{source}: subject {row.subject!r} of dataset {row.dataset!r} is in both {sides[row.person]} and {row.split}; choose one"
            )
        keys[row.key] = row.image


def assign_splits(
    rows: Iterable[Row],
    *,
    seed: int,
    fractions: Sequence[float | int] | None = None,
    rule: Literal["subject", "paper"] = "subject",
) -> tuple[Row, ...]:
    """The rows, in their order, with splits train, val and test by `fractions` (FRACTIONS[rule] if None) within each dataset.

    "subject" divides subjects; each non-zero fraction gets one if there are enough. "paper" divides images; then val and test scans of a
    subject in train, and val scans of one in test, become "excluded". Splits do not depend on order or paths. If all rows have a split they
    keep it. Raises InputError if only some have, and for fractions that are not three parts of 1.
    """
    rows = tuple(rows)
    if all(row.split for row in rows):
        return rows
    if given := [row for row in rows if row.split]:
        raise InputError(f"{len(given)} of {len(rows)} rows have a split, e.g. {given[0].image}; fill in all of them or none")
    if rule not in FRACTIONS:
        raise InputError(f"split rule {rule!r} is unknown; use one of {', '.join(FRACTIONS)}")
    fractions = tuple(map(float, FRACTIONS[rule] if fractions is None else fractions))
    if len(fractions) != 3 or min(fractions) < 0 or not abs(sum(fractions) - 1) <= 1e-6:
        raise InputError(f"fractions {fractions}: give three parts, train val test, that sum to 1")
    units = defaultdict(set)
    for row in rows:
        units[row.dataset].add(row.person if rule == "subject" else row.key)
    split = {}
    for members in units.values():
        order = sorted(members, key=lambda unit: hashlib.sha256("\t".join((str(seed), *unit)).encode()).digest())
        names = (name for name, n in zip(SPLITS, _counts(len(order), fractions), strict=False) for _ in range(n))
        split.update(zip(order, names, strict=True))
    if rule == "subject":
        return tuple(row._replace(split=split[row.person]) for row in rows)
    seen = defaultdict(set)
    for row in rows:
        seen[row.person].add(split[row.key])
    side = {person: next(name for name in ("train", "test", "val") if name in names) for person, names in seen.items()}
    return tuple(row._replace(split=split[row.key] if split[row.key] == side[row.person] else "excluded") for row in rows)


def split_table(rows: Iterable[Row], source: str | Path) -> str:
    """The split of each scan, by name and not by path, as the text of a table for `apply_splits`; equal splits give equal text.

    Raises InputError, naming `source`, if a row has no split.
    """
    rows = tuple(rows)
    if without := [row for row in rows if not row.split]:
        raise InputError(f"{source}: {len(without)} rows have no split, e.g. {without[0].image}; assign splits first")
    check_rows(rows, source)
    return table_text(SPLIT_COLUMNS, sorted((*row.key, row.split) for row in rows))


def write_splits(path: str | Path, rows: Iterable[Row]) -> str:
    """Writes `split_table` and returns the file's SHA-256 (64 hex digits)."""
    text = split_table(rows, path)
    write_text(Path(path), text)
    return hashlib.sha256(text.encode()).hexdigest()


def apply_splits(rows: Iterable[Row], path: str | Path) -> tuple[Row, ...]:
    """The rows with the splits from a file of `write_splits`, which replace their own; the file may have more scans.

    Raises InputError if a scan is not in the file, or the file is unusable.
    """
    split = {}
    for line, cells in _table(Path(path), SPLIT_COLUMNS, required=SPLIT_COLUMNS):
        key = tuple(cells[name] for name in SPLIT_COLUMNS[:-1])
        if key in split:
            raise InputError(f"{path}: line {line}: {cells['image']} is listed twice; remove one of the two")
        split[key] = cells["split"]
    rows = tuple(rows)
    if missing := [row for row in rows if row.key not in split]:
        raise InputError(f"{path}: {len(missing)} of {len(rows)} scans are not in it, e.g. {missing[0].image}; make the split again")
    rows = tuple(row._replace(split=split[row.key]) for row in rows)
    check_rows(rows, path)
    return rows


def _counts(n: int, fractions: Sequence[float]) -> list[int]:
    """n divided into three integers: the largest remainders are rounded up, and no non-zero fraction gets 0 if n suffices."""
    ideal = [n * fraction / sum(fractions) for fraction in fractions]
    counts = [math.floor(x) for x in ideal]
    for i in sorted(range(3), key=lambda i: counts[i] - ideal[i])[: n - sum(counts)]:
        counts[i] += 1
    wanted = [i for i in range(3) if fractions[i] > 0]
    for i in wanted if n >= len(wanted) else ():
        if counts[i] == 0:
            counts[counts.index(max(counts))] -= 1
            counts[i] = 1
    return counts


def _table(path: Path, columns: Sequence[str], required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    return read_cells(path, columns, required, "check the path, or make a manifest with brainseg prepare manifest", "scans")
