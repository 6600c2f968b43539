"""Weights as a safetensors file: a JSON header that says where each array lies, and the arrays' bytes; the format is read and written here.

The format has no checksum: a flipped bit among the numbers goes unnoticed, in the header almost never.
"""

import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import atomic_write, open_regular

HEADER = 100_000_000  # bytes a header may take, as in the format's reference implementation
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_METADATA = "__metadata__"
_AGAIN = "copy or download it again"


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays by name, in the header's order and not to be written to, and the file's metadata.

    Raises InputError, naming the file and the remedy, unless the header is sound and the arrays cover the file's bytes once each.
    """
    with open_regular(path, "give a file of weights") as file:
        size = file.seek(0, 2)
        file.seek(0)
        header, begin = _header(file, size)
        metadata = _metadata(header.pop(_METADATA, {}))
        _check_cover(header, size - begin)
        return {name: _array(file, begin, name, entry) for name, entry in header.items()}, metadata


def write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes the arrays, one after the other in the order given, all of them or nothing; equal input gives equal bytes.

    Big-endian and strided arrays are written as little-endian rows. Raises InputError, naming the array, for a type the format lacks.
    """
    header: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    end = 0
    for name, array in arrays.items():
        if name == _METADATA:
            raise InputError(f"{path}: no array can be named {name}, which is the format's own key; rename it")
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _code(path, name, array), "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER:
        raise InputError(f"{path}: names and metadata take {len(text)} bytes, over {HEADER}; shorten the metadata")
    with atomic_write(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, array in arrays.items():
            file.write(array.astype(DTYPES[header[name]["dtype"]], copy=False).tobytes())


def _code(path: Path, name: str, array: np.ndarray) -> str:
    for code, dtype in DTYPES.items():
        if array.dtype.newbyteorder("<") == dtype:
            return code
    raise InputError(f"{path}: array {name!r} is {array.dtype}, which is not among {', '.join(DTYPES)}; convert it first")


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where in the file the arrays begin."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, HEADER):
        raise InputError(f"is not a safetensors file, or is cut off; check the path, or {_AGAIN}")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise InputError(f"is not a safetensors file, its header does not begin with {{; check the path, or {_AGAIN}")
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique), 8 + length
    except (ValueError, RecursionError) as error:
        raise InputError(f"its header is not JSON ({error}); {_AGAIN}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise InputError(f"its header names something twice; {_AGAIN}")
    return entries


def _metadata(entry: Any) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise InputError("its metadata are not texts by name; write the file again")
    return entry


def _check_cover(header: dict[str, Any], size: int) -> None:
    """Every entry is sound by itself, and together they cover the `size` bytes of the buffer without a hole or an overlap."""
    end = 0
    for begin, until, name in sorted((*_range(name, entry), name) for name, entry in header.items()):
        if begin != end:
            raise InputError(f"array {name[:80]!r} begins at byte {begin} and not where the one before it ends, at {end}; {_AGAIN}")
        end = until
    if end != size:
        raise InputError(f"its arrays take {end} bytes and the file holds {size} for them; {_AGAIN}")


def _range(name: str, entry: Any) -> tuple[int, int]:
    """The bytes of an array, from and to, counted from the end of the header."""
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [begin, end]} if len(entry) == 3:
            if code not in DTYPES:
                raise InputError(f"array {name[:80]!r} has type {code[:80]!r}, not among {', '.join(DTYPES)}; convert it first")
            if all(type(n) is int and 0 <= n < 2**63 for n in (begin, end, *shape)) and len(shape) <= 64:
                if math.prod(shape) * DTYPES[code].itemsize != end - begin:
                    raise InputError(f"array {name[:80]!r} has another shape than its {end - begin} bytes; {_AGAIN}")
                return begin, end
    raise InputError(f"array {name[:80]!r} is not described by a type, a shape and two offsets; {_AGAIN}")


def _array(file: BinaryIO, begin: int, name: str, entry: dict[str, Any]) -> np.ndarray:
    start, end = entry["data_offsets"]
    file.seek(begin + start)
    array = np.frombuffer(file.read(end - start), DTYPES[entry["dtype"]])
    if array.dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise InputError(f"array {name[:80]!r} holds booleans other than 0 and 1; {_AGAIN}")
    try:
        return array.reshape(entry["shape"])
    except ValueError:  # e.g. an empty array with another side beyond what numpy counts
        raise InputError(f"array {name[:80]!r} has shape {entry['shape']}, which cannot be; {_AGAIN}") from None
