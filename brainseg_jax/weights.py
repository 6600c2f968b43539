"""A network as one file to hand on: safetensors, with each number under its path and, in the metadata, the card and a checksum.

The format itself would not notice a flipped bit.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from brainseg_jax import safetensors
from brainseg_jax.errors import InputError
from brainseg_jax.trees import paths, tree

SUFFIX = ".safetensors"
CARD, CHECKSUM = "brainseg_jax_card", "sha256"  # keys of the metadata; converted files have another of ours


def write(file: Path, params: Any, card: dict[str, Any], dtype: Any = None) -> None:
    """Writes parameters with their card, all or nothing. `dtype`: the type of all numbers in the file, e.g. float16 for half the size."""
    arrays = {path: np.asarray(leaf, dtype) for path, leaf in paths(params).items()}
    safetensors.write(file, arrays, {CARD: json.dumps(card), CHECKSUM: _checksum(arrays)})


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters, in single precision if they are stored in less, and the card. Raises InputError for another kind of file, or a damaged
    one."""
    arrays, metadata = safetensors.read(file)
    if CARD not in metadata:
        raise InputError(f"{file}: holds another program's weights; make a checkpoint of it: python -m converters.convert {file} FOLDER")
    if metadata.get(CHECKSUM) != _checksum(arrays):
        raise InputError(f"{file}: its numbers are not those that were written; copy or download it again")
    wide = {path: array.astype(np.promote_types(array.dtype, np.float32)) for path, array in arrays.items()}
    return tree(wide), json.loads(metadata[CARD])


def is_network(file: Path) -> bool:
    """Whether this is a file that `write` made, sound or not."""
    try:
        return file.suffix == SUFFIX and CARD in safetensors.read(file)[1]
    except InputError:
        return False


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for path, array in sorted(arrays.items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
