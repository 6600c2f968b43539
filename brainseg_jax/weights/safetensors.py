"""Safetensors files, read and written by the library, with further validation, e.g. against duplicate names.

The format has no checksum: a flipped bit in the arrays is not detected, in the header almost always.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, numpy, safe_open

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import atomic_write, open_regular

HEADER = 100_000_000  # the library's maximum bytes of a header
# The types that all releases of the library support.
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
    """The arrays by name, in the header's order, and the file's metadata.

    Raises InputError, naming the file and the remedy, unless the header is sound and the arrays cover the file's bytes once each.
    """
    with open_regular(path, "give a file of weights") as file:
        try:
            with safe_open(path, "numpy") as content:  # validates the header against the file's size
                text = file.read(int.from_bytes(file.read(8), "little"))
                if not text.startswith(b"{"):
                    raise InputError(f"is not a safetensors file, its header does not begin with {{; check the path, or {_AGAIN}")
                header = json.loads(text, object_pairs_hook=_unique)
                metadata = header.pop(_METADATA, None) or {}
                return {name: _array(content, name, entry) for name, entry in header.items()}, metadata
        except (SafetensorError, ValueError) as error:  # ValueError is NumPy's, e.g. for an empty array with an impossible side
            reason = " ".join(str(error).removeprefix("Error while deserializing header: ").split())[:200]
            raise InputError(f"is not a safetensors file, or is cut off or damaged ({reason}); check the path, or {_AGAIN}") from None


def write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes the arrays, in the library's order, atomically; equal input gives equal bytes.

    Big-endian and strided arrays are written as little-endian rows. Raises InputError, naming the array, for a type not among DTYPES.
    """
    for name, array in arrays.items():
        if name == _METADATA:
            raise InputError(f"{path}: no array can be named {name}, which is the format's own key; rename it")
        if array.dtype.newbyteorder("<") not in DTYPES.values():
            raise InputError(f"{path}: array {name!r} is {array.dtype}, which is not among {', '.join(DTYPES)}; convert it first")
    content = numpy.save({name: a.astype(a.dtype.newbyteorder("<"), order="C", copy=False) for name, a in arrays.items()})
    begin = 8 + int.from_bytes(content[:8], "little")
    # The metadata are added here, since the library writes them in random order.
    header = ({_METADATA: metadata} if metadata else {}) | json.loads(content[8:begin])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER:
        raise InputError(f"{path}: names and metadata take {len(text)} bytes, over {HEADER}; shorten the metadata")
    with atomic_write(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(content)[begin:])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise InputError(f"its header names something twice; {_AGAIN}")
    return entries


def _array(content: Any, name: str, entry: Any) -> np.ndarray:
    if not isinstance(entry, dict) or len(entry) != 3:
        raise InputError(f"array {name[:80]!r} is not described by a type, a shape and two offsets; {_AGAIN}")
    if (code := content.get_slice(name).get_dtype()) not in DTYPES:
        raise InputError(f"array {name[:80]!r} has type {code}, not among {', '.join(DTYPES)}; convert it first")
    array = content.get_tensor(name)
    if array.dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise InputError(f"array {name[:80]!r} holds booleans other than 0 and 1; {_AGAIN}")
    return array
