"""The engine of the converters: tables from their keys to our leaves, used in both directions.

A table is text in three columns: their key, our path, the layout (a key of LAYOUTS). `{s}` stands for a number, the same on both sides;
`[i]` behind a path means that the number {i} is the index along the leaf's first axis (blocks stacked by nn.scan). The first matching row
is used, so later ones are other spellings, which are read and never written. Every key is accounted for: used, dead for a reason, or
unknown.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from brainseg_jax.core.errors import InputError

Tensors = dict[str, np.ndarray]  # theirs, by key
Leaves = dict[str, np.ndarray]  # ours, by path

# The known releases of MONAI.
MONAI = ("0.8", "0.9", "1.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6")

OTHER = "this is another network, which cannot be converted"


class Layout(NamedTuple):
    """The conversion between one of their tensors, with these axes, and ours. `write`, given the channels, is the inverse of `read`."""

    axes: str
    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray, int], np.ndarray]


def _patch_kernel(kernel: np.ndarray, channels: int) -> np.ndarray:
    side = round((len(kernel) / channels) ** (1 / 3))
    return kernel.reshape(side, side, side, channels, -1).transpose(4, 3, 0, 1, 2)


LAYOUTS = {
    "vector": Layout("n", lambda a: a, lambda a, _: a),
    "token": Layout("1 1 n", lambda a: a, lambda a, _: a),
    "matrix": Layout("n m", lambda a: a, lambda a, _: a),
    "table": Layout("1 n d", lambda a: a[0], lambda a, _: a[None]),
    "linear": Layout("out in", lambda a: a.T, lambda a, _: a.T),
    "conv": Layout("out in x y z", lambda a: a.transpose(2, 3, 4, 1, 0), lambda a, _: a.transpose(4, 3, 0, 1, 2)),
    "conv1": Layout("out in 1 1 1", lambda a: a[:, :, 0, 0, 0].T, lambda a, _: a.T[:, :, None, None, None]),
    # A transposed convolution as a matrix product, with outputs in (x, y, z, out) order.
    "up": Layout(
        "in out 2 2 2",
        lambda a: a.transpose(0, 2, 3, 4, 1).reshape(len(a), -1),
        lambda a, _: a.reshape(len(a), 2, 2, 2, -1).transpose(0, 4, 1, 2, 3),
    ),
    # A patch embedding as a matrix product, with voxels in (x, y, z, in) order.
    "patch2": Layout("out in 2 2 2", lambda a: a.transpose(2, 3, 4, 1, 0).reshape(-1, len(a)), _patch_kernel),
    "patch": Layout("out in p p p", lambda a: a.transpose(2, 3, 4, 1, 0).reshape(-1, len(a)), _patch_kernel),
}


class Row(NamedTuple):
    """One line of a table."""

    theirs: str
    ours: str
    layout: str


def table(text: str) -> tuple[Row, ...]:
    """The rows of a text in three columns; empty lines are ignored."""
    return tuple(Row(*line.split()) for line in text.splitlines() if line.strip())


def under(rows: Iterable[Row], theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows with prefixes for their keys and our paths."""
    return tuple(Row(theirs + row.theirs, ours + row.ours, row.layout) for row in rows)


class Dead(NamedTuple):
    """A key of files that no network uses. `*` in `key` stands for anything.

    Files of MONAI `since` to `until` have it. An export for one of them creates it by `make`, from the tensor of every key that matches
    `beside`, with the same numbers.
    """

    key: str
    why: str
    since: str = MONAI[0]
    until: str = MONAI[-1]
    beside: str = ""
    make: Callable[[np.ndarray], np.ndarray] | None = None


class Dialect(NamedTuple):
    """A kind of file: the common properties of its networks, and the tables of its keys."""

    name: str  # value of --dialect
    what: str  # description
    fixed: dict[str, Any]  # config values of all its networks
    parts: tuple[str, ...]  # top-level names in our checkpoint
    marks: tuple[str, ...]  # keys by which it is detected
    rows: tuple[Row, ...]
    dead: tuple[Dead, ...]
    sizes: Callable[[Leaves], dict[str, Any]]  # config values from shapes
    since: str = ""  # the first MONAI with the network; empty: none has it
    constructor: Callable[[Any, str], tuple[str, dict[str, Any]]] | None = None  # (config, version) → MONAI's class and its arguments
    holds: str = "net"  # the module whose state the file is; `net` is an instance of that class
    blocks: tuple[Row, ...] = ()  # modules whose outputs a certificate compares, theirs and ours; theirs have channels `first` or `last`
    written: bool = True  # whether it can be exported, or only imported


class Account(NamedTuple):
    """The use of each key of a file: `used` for a path of ours, `dead` for a reason, or `unknown`."""

    used: dict[str, str]
    dead: dict[str, str]
    unknown: tuple[str, ...]


@lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern:
    """The regular expression of a template: `{s}` matches a number, the same at each occurrence; `*` matches anything."""
    seen: set[str] = set()

    def piece(part: str) -> str:
        if part == "*":
            return ".*"
        name = part[1:-1]
        if not part.startswith("{"):
            return re.escape(part)
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return rf"(?P<{name}>\d+)"

    return re.compile("".join(map(piece, re.split(r"(\{\w+\}|\*)", template))))


def numbers(template: str, text: str) -> dict[str, str] | None:
    """The numbers for the names `{s}` in a template that matches the text, else None."""
    match = _pattern(template).fullmatch(text)
    return match.groupdict() if match else None


def _split(ours: str) -> tuple[str, str]:
    """The template of a path and the name of the stacked axis' index, or ""."""
    path, _, stacked = ours.rstrip("]").partition("[")
    return path, stacked


def _row_of_key(rows: tuple[Row, ...], key: str) -> tuple[Row, dict[str, str]] | None:
    return next(((row, found) for row in rows if (found := numbers(row.theirs, key)) is not None), None)


def _row_of_path(rows: tuple[Row, ...], path: str) -> tuple[Row, dict[str, str]] | None:
    return next(((row, found) for row in rows if (found := numbers(_split(row.ours)[0], path)) is not None), None)


def their_key(rows: tuple[Row, ...], path: str) -> str:
    """The key of one of our paths in their files, with * for the index of a stacked axis; the path itself if there is none."""
    found = _row_of_path(rows, path)
    if found is None:
        return path
    row, values = found
    return row.theirs.format(**values, **{_split(row.ours)[1]: "*"})


def to_ours(rows: tuple[Row, ...], dead: tuple[Dead, ...], tensors: Tensors) -> tuple[Leaves, Account]:
    """Our leaves and the account of all keys. Raises InputError for a tensor of another shape, a duplicate, or a gap in a stack."""
    account = Account({}, {}, ())
    unknown, parts, origin = [], {}, {}
    for key, tensor in tensors.items():
        if reason := next((d.why for d in dead if numbers(d.key, key) is not None), ""):
            account.dead[key] = reason
            continue
        found = _row_of_key(rows, key)
        if found is None:
            unknown.append(key)
            continue
        row, values = found
        template, stacked = _split(row.ours)
        path, index = template.format(**values), int(values[stacked]) if stacked else None
        if (path, index) in origin:
            raise InputError(f"{origin[path, index]} and {key} are two names of one weight; keep one of them")
        origin[path, index] = key
        account.used[key] = path
        parts.setdefault(path, {})[index] = _laid_out(row.layout, key, tensor)
    leaves = {path: part[None] if None in part else _stack(rows, path, part) for path, part in parts.items()}
    return leaves, account._replace(unknown=tuple(unknown))


def to_theirs(rows: tuple[Row, ...], leaves: Leaves, channels: int) -> Tensors:
    """Their tensors for our leaves, given the image's `channels`. Raises InputError for a leaf that is not in the table."""
    tensors = {}
    for path, leaf in leaves.items():
        found = _row_of_path(rows, path)
        if found is None:
            raise InputError(f"{path} has no place in this dialect; choose another --dialect")
        row, values = found
        write, stacked = LAYOUTS[row.layout].write, _split(row.ours)[1]
        for i, part in enumerate(leaf) if stacked else [("", leaf)]:
            tensors[row.theirs.format(**values, **{stacked: i})] = np.ascontiguousarray(write(part, channels))
    return tensors


def check_weights(tensors: Tensors) -> None:
    """Raises InputError, naming the key, for integers, and for values that are NaN or infinite in float32."""
    for key, tensor in tensors.items():
        if tensor.dtype.kind in "iub":
            raise InputError(f"{key} holds {tensor.dtype} numbers, and weights are floats; convert the file it was made from")
        with np.errstate(over="ignore"):
            faults = np.count_nonzero(~np.isfinite(tensor.astype(np.float32)))
        if faults:
            raise InputError(
                f"{key} holds NaN or infinity ({faults} of {tensor.size} numbers); use a checkpoint from before training failed"
            )


def place(rows: tuple[Row, ...], name: str) -> tuple[str, str] | None:
    """Our path and the last column for a name of theirs, by a table without stacks; None if it is not in the table."""
    found = _row_of_key(rows, name)
    return (found[0].ours.format(**found[1]), found[0].layout) if found else None


def synthesise(dead: tuple[Dead, ...], tensors: Tensors, monai: str) -> Tensors:
    """The dead tensors that MONAI `monai` requires beside the tensors."""
    return {
        entry.key.format(**values): entry.make(tensor)
        for entry in dead
        if entry.make and alive(entry, monai)
        for key, tensor in tensors.items()
        if (values := numbers(entry.beside, key)) is not None
    }


def alive(dead: Dead, monai: str) -> bool:
    """Whether files of MONAI `monai` have the dead key."""
    return MONAI.index(dead.since) <= MONAI.index(monai) <= MONAI.index(dead.until)


def written_by(dialect: Dialect, keys: Iterable[str]) -> str:
    """The releases of MONAI that write exactly these unused keys, e.g. "0.9 to 1.3"; "" if unknown."""
    keys = list(keys)
    distinctive = [d for d in dialect.dead if (d.since, d.until) != (MONAI[0], MONAI[-1])]
    present = {d: any(numbers(d.key, key) is not None for key in keys) for d in distinctive}
    since = MONAI[MONAI.index(dialect.since) :] if dialect.since else ()
    fitting = [version for version in since if all(alive(d, version) == present[d] for d in distinctive)]
    return f"{fitting[0]} to {fitting[-1]}" if len(fitting) > 1 else "".join(fitting)


def release(text: str) -> str:
    """The entry of MONAI for a version, e.g. "1.5" for "1.5.1". Raises InputError for an unknown one."""
    version = ".".join(text.strip().split(".")[:2])
    if version not in MONAI:
        raise InputError(f"--monai {text}: known are {MONAI[0]} to {MONAI[-1]}; give one of them")
    return version


def at_least(monai: str, version: str) -> bool:
    """Whether a release is `version` or newer."""
    return MONAI.index(monai) >= MONAI.index(version)


def _laid_out(layout: str, key: str, tensor: np.ndarray) -> np.ndarray:
    axes, read, _ = LAYOUTS[layout]
    sides = axes.split()
    if tensor.ndim != len(sides) or any(
        n != (int(side) if side.isdigit() else tensor.shape[sides.index(side)]) for n, side in zip(tensor.shape, sides, strict=True)
    ):
        flat = tensor.ndim == len(sides) - 1 and tensor.ndim > 3
        reason = "this is a 2-D network, and only 3-D ones are known" if flat else OTHER
        raise InputError(f"{key} has shape {tensor.shape} where [{axes}] is expected; {reason}")
    return read(tensor)


def _stack(rows: tuple[Row, ...], path: str, parts: dict[int, np.ndarray]) -> np.ndarray:
    for i in range(max(parts) + 1):
        if i not in parts:
            raise InputError(f"{their_key(rows, path).replace('*', str(i))} is missing; the file is incomplete, get it again")
        if parts[i].shape != parts[0].shape:
            raise InputError(f"{their_key(rows, path).replace('*', str(i))} has another shape than number 0; {OTHER}")
    return np.stack([parts[i] for i in range(len(parts))])
