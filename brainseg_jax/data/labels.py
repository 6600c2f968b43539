"""Label tables: the structures of a label scheme's voxel values, and conversion of labels between schemes.

Every table identifies its structures by FreeSurfer ids, and the table `freesurfer` has which structure is part of which. This defines the
grouping: a structure of the source belongs to the structure of the target with its FreeSurfer id, or with that of a structure it is part
of. By this rule 138 structures become 35, 33, 4 or 1, or those of a user's table. Tables are tab-separated text, with columns

id            the voxel value; 0 is the background and has no line
name          plain words; a side comes first: "Left hippocampus"
partner       id of the same structure on the other side, its own id on the midline: exchanged in a left-right flip
freesurfer    FreeSurfer id, or several joined by "/" if the structure consists of them; empty if FreeSurfer has none
part_of       FreeSurfer ids of structures it is part of, for targets without it; "2/41" is the nearer one of the two
abbreviation, colour (#rrggbb), tissue (of TISSUES), note (the reason for a choice)

The first three are required.
"""

import colorsys
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, Shaped, UInt
from scipy import ndimage

from brainseg_jax.core.errors import InputError, did_you_mean
from brainseg_jax.core.files import parse_cells, read_table_text, split_rows

# seg33: the paper's structures. intracranial: these without vessels, and the rest of the intracranial volume. malpem: ADNI's labels.
# brain: a mask, with the CSF around the brain. head: for synthesis (data/synthesis), with classes outside the brain.
SCHEMES = ("seg35", "seg33", "intracranial", "seg4", "brain", "freesurfer", "malpem", "synthseg", "dlmuse", "head")
HEAD = "head"
COLUMNS = ("id", "name", "abbreviation", "freesurfer", "part_of", "partner", "colour", "tissue", "note")
REQUIRED = ("id", "name", "partner")
TISSUES = ("cortex", "subcortical grey matter", "white matter", "csf", "other")
SPOTS = range(77, 83)  # FreeSurfer ids of hypointensities, which are scattered
LAST = 2**16 - 1  # the largest id, since ids are indices into an array
NEAR = 16  # margin in voxels around midline structures in which the nearer side is determined


class Structure(NamedTuple):
    """One line of a table. `freesurfer` and `part_of` are FreeSurfer ids, `partner` an id of the same table."""

    id: int
    name: str
    abbreviation: str
    freesurfer: tuple[int, ...]
    part_of: tuple[int, ...]
    partner: int
    colour: str
    tissue: str
    note: str


class Table(NamedTuple):
    """A label scheme. A network for it has the classes 0 (background) and 1 to n in the order of `structures`."""

    name: str
    structures: tuple[Structure, ...]


def read_table(scheme: str | Path) -> Table:
    """The table of one of SCHEMES or of a user's TSV file. Raises InputError, naming line and remedy, for any fault."""
    if scheme in SCHEMES:
        return _shipped(str(scheme))
    path, known = Path(scheme), ", ".join(SCHEMES)
    if path.suffix != ".tsv":
        raise InputError(f"label table {str(scheme)!r} is unknown{did_you_mean(str(scheme), SCHEMES)}; use a .tsv file or one of {known}")
    return parse_table(read_table_text(path, f"check the path, or use one of {known}", "tab-separated text"), str(path))


def parse_table(text: str, name: str) -> Table:
    """The table in a text; `name` is its name in errors. Raises InputError as `read_table` does."""
    structures: dict[int, Structure] = {}
    lines_of: dict[int | str, int] = {}
    for line, cells in parse_cells(name, split_rows(text), COLUMNS, REQUIRED, "\t", "structures"):
        where = f"{name}: line {line}"
        structure = _structure(cells, where)
        for mark in (structure.id, structure.name):
            if mark in lines_of:
                raise InputError(f"{where}: {mark!r} stands in line {lines_of[mark]} too; give each structure its own id and name")
            lines_of[mark] = line
        structures[structure.id] = structure
    for id, structure in structures.items():
        partner = structures.get(structure.partner)
        if partner is None or partner.partner != id:
            raise InputError(
                f"{name}: line {lines_of[id]}: partner {structure.partner} is no line whose partner is {id}; "
                "give each side the other's id, and what lies on the midline its own"
            )
    return Table(name, tuple(structures.values()))


def connected_structures(table: Table) -> list[int]:
    """Class numbers of structures that are connected in a healthy brain: those with one FreeSurfer id, without CSF and hypointensities."""
    ids = ((n, s.freesurfer[0]) for n, s in enumerate(table.structures, 1) if s.tissue != "csf" and len(s.freesurfer) == 1)
    return [n for n, id in ids if id not in SPOTS]


def table_text(table: Table) -> str:
    """The table as text for `parse_table`, for files that include their table."""
    lines = ["\t".join(COLUMNS)]
    for structure in table.structures:
        cells = ("/".join(map(str, cell)) if isinstance(cell, tuple) else str(cell) for cell in map(structure._asdict().get, COLUMNS))
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


def grouping(source: Table, target: Table) -> dict[int, tuple[int, ...]]:
    """The target's ids for each id of the source: (), (id,), or a left and right id of which the nearer one is to be used.

    Raises InputError if a table has no FreeSurfer ids, and if the source does not distinguish structures of the target.
    """
    if source.structures == target.structures:
        return {s.id: (s.id,) for s in source.structures}
    for table in (source, target):
        if not any(s.freesurfer for s in table.structures):
            raise InputError(f"label table {table.name} has no FreeSurfer ids to get from {source.name} to {target.name}; add that column")
    by_freesurfer = defaultdict(set)
    for structure in target.structures:
        for id in structure.freesurfer:
            by_freesurfer[id].add(structure.id)
    wholes = {s.id: s.part_of for s in _shipped("freesurfer").structures}

    def targets(ids: Iterable[int]) -> frozenset[int]:
        return frozenset().union(*(by_freesurfer.get(id) or targets(wholes.get(id, ())) for id in ids))

    candidates = {}  # the target ids of each FreeSurfer id of a source structure, which have to agree
    for structure in source.structures:
        own = {targets([id]) for id in structure.freesurfer}
        candidates[structure.id] = own if any(own) else {targets(structure.part_of)}
    groups = {id: tuple(sorted(frozenset().union(*own))) for id, own in candidates.items()}
    named = {s.id: s for s in target.structures}
    for structure in source.structures:
        ids = groups[structure.id]
        # A midline structure goes to the nearer side, which requires source structures of each side.
        sides = len(ids) == 2 and named[ids[0]].partner == ids[1] and {ids[:1], ids[1:]} <= set(groups.values())
        if len(candidates[structure.id]) > 1 or not (len(ids) < 2 or sides):
            two = [repr(named[id].name) for id in ids[:2]] + ["the background"]
            raise InputError(
                f"{structure.name!r} of label table {source.name} does not tell {two[0]} from {two[1]} of {target.name}; "
                "use labels that do, or a coarser target"
            )
    return groups


def missing(source: Table, target: Table) -> tuple[Structure, ...]:
    """The structures of the target that labels of the source do not have, e.g. the vessels of seg33 for dlmuse."""
    given = set().union(*grouping(source, target).values())
    return tuple(s for s in target.structures if s.id not in given)


def lookup(labels: Shaped[np.ndarray, "*shape"], source: Table, target: Table, name: str = "labels") -> UInt[np.ndarray, "*shape"]:
    """Labels of the source as class numbers of the target, uint8 or uint16; structures that are not in the target become 0.

    Voxels of midline structures go to the nearer side, or are background if no side is near, so use whole volumes instead of crops. Raises
    InputError, beginning with `name`, for ids that are not in the source and for values that are not integers.
    """
    with np.errstate(invalid="ignore"):
        ids = labels.astype(np.intp)
    if labels.dtype.kind == "f" and (broken := ids != labels).any():
        raise InputError(f"{name}: {labels[broken][0]:g} is no label; save the labels as integers, resampled by nearest neighbour only")
    groups = grouping(source, target)
    either = sorted({group for group in groups.values() if len(group) == 2})
    number = {group: n for n, group in enumerate([(), *((s.id,) for s in target.structures), *either])}
    unknown = len(number)
    table = np.full(max(groups) + 2, unknown, np.min_scalar_type(unknown))
    table[0] = 0
    for id, group in groups.items():
        table[id] = number[group]
    classes = table.take(ids, mode="clip")  # the entry beyond the last id is `unknown`
    if ids.min(initial=0) < 0 or (classes == unknown).any():
        _refuse(ids[(ids < 0) | (classes == unknown)], source, name)
    for left, right in either:
        _take_nearer(classes, number[left, right], (number[left,], number[right,]))
    return classes


def swap(table: Table) -> Integer[np.ndarray, "k"]:
    """The class of each class's partner, background first: `swap(table)[classes]` for a left-right flip."""
    number = {s.id: n for n, s in enumerate(table.structures, 1)}
    return np.array([0, *(number[s.partner] for s in table.structures)])


def voxel_ids(table: Table) -> Integer[np.ndarray, "k"]:
    """The voxel value of each class, background first: `voxel_ids(table)[classes]` are labels of the scheme."""
    return np.array([0, *(s.id for s in table.structures)])


def freesurfer_ids(table: Table) -> Integer[np.ndarray, "k"]:
    """The FreeSurfer id of each class, background first. Raises InputError for a structure with none or several."""
    for structure in table.structures:
        if len(structure.freesurfer) != 1:
            what = f"{structure.name!r} of label table {table.name} has {len(structure.freesurfer) or 'no'} FreeSurfer ids, not one"
            raise InputError(f"{what}; write the table's own ids")
    return np.array([0, *(s.freesurfer[0] for s in table.structures)])


@lru_cache(maxsize=len(SCHEMES))
def _shipped(scheme: str) -> Table:
    file = resources.files(__package__) / "tables" / f"{scheme}.tsv"
    return parse_table(file.read_text(encoding="utf-8"), scheme)


def _structure(cells: dict[str, str], where: str) -> Structure:
    id, partner = (_number(cells[column], f"{where}: {column}") for column in ("id", "partner"))
    if not cells["name"]:
        raise InputError(f"{where}: the name is empty; fill it in")
    freesurfer, part_of = (
        tuple(_number(part, f"{where}: {column}") for part in cells[column].split("/")) if cells[column] not in ("", "0") else ()
        for column in ("freesurfer", "part_of")
    )
    # Partners without a colour get the same default.
    hue = colorsys.hsv_to_rgb(min(id, partner) * 0.618034 % 1, 0.6, 0.9)
    colour = cells["colour"] or "#" + bytes(round(255 * part) for part in hue).hex()
    if not re.fullmatch("#[0-9a-fA-F]{6}", colour):
        raise InputError(f"{where}: colour {colour!r} cannot be read; write it as #rrggbb, e.g. #cd3e4e")
    tissue = cells["tissue"] or "other"
    if tissue not in TISSUES:
        raise InputError(f"{where}: tissue {tissue!r} is unknown{did_you_mean(tissue, TISSUES)}; use one of {', '.join(TISSUES)}")
    return Structure(id, cells["name"], cells["abbreviation"] or cells["name"], freesurfer, part_of, partner, colour, tissue, cells["note"])


def _number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= LAST):
        raise InputError(f"{where} {text!r} is no number from 1 to {LAST}; correct it (0, the background, has no line)")
    return int(text)


def _refuse(ids: Integer[np.ndarray, "n"], source: Table, name: str) -> None:
    values, counts = np.unique(ids, return_counts=True)
    listed = ", ".join(f"{id} ({n} voxel{'s' * (n > 1)})" for id, n in zip(values.tolist()[:5], counts.tolist(), strict=False))
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    remedy = "name the label table that they follow, or list the ids in a table of your own"
    raise InputError(f"{name}: label table {source.name} does not have {listed}{more}; {remedy}")


def _take_nearer(classes: UInt[np.ndarray, "*shape"], either: int, sides: tuple[int, int]) -> None:
    """Replaces voxels of class `either`, in place, by the class of the nearest voxel of one of `sides`, or 0 without one nearby."""
    for box in ndimage.find_objects((classes == either).view(np.uint8)):
        part = classes[tuple(slice(max(axis.start - NEAR, 0), axis.stop + NEAR) for axis in box)]
        midline, sided = part == either, (part == sides[0]) | (part == sides[1])
        if sided.any():
            nearest = ndimage.distance_transform_edt(~sided, return_distances=False, return_indices=True)
            part[midline] = part[tuple(nearest)][midline]
        else:
            part[midline] = 0
