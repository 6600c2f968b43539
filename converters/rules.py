"""The engine of the converters: a table says which of their keys is which leaf of ours, and is read in both directions.

A table is text in three columns: their key, our path, how the numbers are laid out (a name in LAYOUTS). `{s}` stands for a number, the same
on both sides; `[i]` behind a path says that the number {i} counts along the leaf's first axis (blocks that nn.scan stacks). Rows are tried
from the top, so later ones are other spellings, which are read and never written. Every key is accounted for: used, dead for a reason, or
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

# MONAI's releases, as far as they are known here.
MONAI = ("0.8", "0.9", "1.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6")

OTHER = "this is another network, which cannot be converted"


class Layout(NamedTuple):
    """How one of their tensors, of these axes, lies in ours. `write` is the inverse of `read`; it is told the image's channels."""

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
    # A transposed convolution that is a matrix product: outputs in (x, y, z, out) order.
    "up": Layout(
        "in out 2 2 2",
        lambda a: a.transpose(0, 2, 3, 4, 1).reshape(len(a), -1),
        lambda a, _: a.reshape(len(a), 2, 2, 2, -1).transpose(0, 4, 1, 2, 3),
    ),
    # A convolution that cuts patches, as a matrix product: voxels in (x, y, z, in) order.
    "patch2": Layout("out in 2 2 2", lambda a: a.transpose(2, 3, 4, 1, 0).reshape(-1, len(a)), _patch_kernel),
    "patch": Layout("out in p p p", lambda a: a.transpose(2, 3, 4, 1, 0).reshape(-1, len(a)), _patch_kernel),
}


class Row(NamedTuple):
    """One line of a table."""

    theirs: str
    ours: str
    layout: str


def table(text: str) -> tuple[Row, ...]:
    """The rows of a text in three columns; empty lines may part them."""
    return tuple(Row(*line.split()) for line in text.splitlines() if line.strip())


def under(rows: Iterable[Row], theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows with a prefix before their keys and one before our paths."""
    return tuple(Row(theirs + row.theirs, ours + row.ours, row.layout) for row in rows)


class Dead(NamedTuple):
    """A key that files have and no network uses. `*` in `key` stands for anything.

    Files of MONAI `since` to `until` have it. An export for one of them makes it anew: for every key that `beside` describes there is one
    with the same numbers, `make` of that key's tensor.
    """

    key: str
    why: str
    since: str = MONAI[0]
    until: str = MONAI[-1]
    beside: str = ""
    make: Callable[[np.ndarray], np.ndarray] | None = None


class Dialect(NamedTuple):
    """A kind of file: what its networks have in common, and how its keys are read and written."""

    name: str  # as --dialect takes it
    what: str  # in words
    fixed: dict[str, Any]  # values of our config that all its networks share
    parts: tuple[str, ...]  # what our checkpoint holds then, at the top
    marks: tuple[str, ...]  # keys that tell it from others
    rows: tuple[Row, ...]
    dead: tuple[Dead, ...]
    sizes: Callable[[Leaves], dict[str, Any]]  # the values of our config that shapes tell
    since: str = ""  # the first MONAI that has the network; empty: none has
    constructor: Callable[[Any, str], tuple[str, dict[str, Any]]] | None = None  # (config, version) to MONAI's class and its arguments
    holds: str = "net"  # what the file is the state of, `net` being that class
    blocks: tuple[Row, ...] = ()  # its modules and ours, whose outputs a certificate compares; theirs have channels `first` or `last`
    written: bool = True  # whether export knows it, or import only


class Account(NamedTuple):
    """Where each key of a file went: `used` for a path of ours, `dead` for a reason, or `unknown`."""

    used: dict[str, str]
    dead: dict[str, str]
    unknown: tuple[str, ...]


@lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern:
    """`{s}` matches a number, and where it comes again the same one; `*` matches anything."""
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
    """The numbers that `{s}` and its like stand for where `text` is what `template` describes, else None."""
    found = _pattern(template).fullmatch(text)
    return found.groupdict() if found else None


def _split(ours: str) -> tuple[str, str]:
    """A path's template and the name that counts along the stacked axis, or ""."""
    path, _, stacked = ours.rstrip("]").partition("[")
    return path, stacked


def _row_of_key(rows: tuple[Row, ...], key: str) -> tuple[Row, dict[str, str]] | None:
    return next(((row, found) for row in rows if (found := numbers(row.theirs, key)) is not None), None)


def _row_of_path(rows: tuple[Row, ...], path: str) -> tuple[Row, dict[str, str]] | None:
    return next(((row, found) for row in rows if (found := numbers(_split(row.ours)[0], path)) is not None), None)


def their_key(rows: tuple[Row, ...], path: str) -> str:
    """The key that one of our paths has in their files, with * for a number that is stacked in ours; the path itself where none has."""
    found = _row_of_path(rows, path)
    if found is None:
        return path
    row, values = found
    return row.theirs.format(**values, **{_split(row.ours)[1]: "*"})


def to_ours(rows: tuple[Row, ...], dead: tuple[Dead, ...], tensors: Tensors) -> tuple[Leaves, Account]:
    """Our leaves, and where every key went. Raises InputError for a tensor of another kind, one given twice, or a gap in a stack."""
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
    """Their tensors for our leaves; `channels` of the image. Raises InputError for a leaf that the table has no place for."""
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
    """Raises InputError, naming the key, for integers, and for numbers that are NaN or infinite, also once they are float32."""
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
    """Our path and the last column for a name of theirs, by a table without stacks; None where it has no row."""
    found = _row_of_key(rows, name)
    return (found[0].ours.format(**found[1]), found[0].layout) if found else None


def synthesise(dead: tuple[Dead, ...], tensors: Tensors, monai: str) -> Tensors:
    """The dead tensors that MONAI `monai` wants to find beside the tensors."""
    made = {}
    for d in dead:
        if d.make and alive(d, monai):
            for key, tensor in tensors.items():
                if (values := numbers(d.beside, key)) is not None:
                    made[d.key.format(**values)] = d.make(tensor)
    return made


def alive(dead: Dead, monai: str) -> bool:
    """Whether files of MONAI `monai` have the key."""
    return MONAI.index(dead.since) <= MONAI.index(monai) <= MONAI.index(dead.until)


def written_by(dialect: Dialect, keys: Iterable[str]) -> str:
    """The releases of MONAI that write exactly these unused keys, e.g. "0.9 to 1.3"; "" where that cannot be told."""
    keys = list(keys)
    telling = [d for d in dialect.dead if (d.since, d.until) != (MONAI[0], MONAI[-1])]
    there = {d: any(numbers(d.key, key) is not None for key in keys) for d in telling}
    since = MONAI[MONAI.index(dialect.since) :] if dialect.since else ()
    fitting = [version for version in since if all(alive(d, version) == there[d] for d in telling)]
    return f"{fitting[0]} to {fitting[-1]}" if len(fitting) > 1 else "".join(fitting)


def release(text: str) -> str:
    """The entry of MONAI for a version, e.g. "1.5" for "1.5.1". Raises InputError for one that is not known."""
    found = ".".join(text.strip().split(".")[:2])
    if found not in MONAI:
        raise InputError(f"--monai {text}: known are {MONAI[0]} to {MONAI[-1]}; give one of them")
    return found


def at_least(monai: str, version: str) -> bool:
    """Whether a release is `version` or newer."""
    return MONAI.index(monai) >= MONAI.index(version)


def _laid_out(layout: str, key: str, tensor: np.ndarray) -> np.ndarray:
    axes, read, _ = LAYOUTS[layout]
    sides = axes.split()
    fits = tensor.ndim == len(sides) and all(
        n == int(side) if side.isdigit() else n == tensor.shape[sides.index(side)] for n, side in zip(tensor.shape, sides, strict=True)
    )
    if not fits:
        flat = tensor.ndim == len(axes.split()) - 1 and tensor.ndim > 3
        another = "this is a 2-D network, and only 3-D ones are known" if flat else OTHER
        raise InputError(f"{key} has shape {tensor.shape} where [{axes}] is expected; {another}")
    return read(tensor)


def _stack(rows: tuple[Row, ...], path: str, parts: dict[int, np.ndarray]) -> np.ndarray:
    for i in range(max(parts) + 1):
        if i not in parts:
            raise InputError(f"{their_key(rows, path).replace('*', str(i))} is missing; the file is incomplete, get it again")
        if parts[i].shape != parts[0].shape:
            raise InputError(f"{their_key(rows, path).replace('*', str(i))} has another shape than number 0; {OTHER}")
    return np.stack([parts[i] for i in range(len(parts))])
