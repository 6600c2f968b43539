"""A network in one safetensors file: parameters by path and, in the metadata, the card and a seal.

The seal is a SHA-256 of parameters and card: the format itself does not detect a flipped bit, and a wrong voxel size in the card gives
wrong labels. Older files have a checksum of the parameters only.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.pytree import paths, unflatten
from brainseg_jax.weights import safetensors

SUFFIX = ".safetensors"
CARD, SEAL = "brainseg_jax_card", "sha256_of_all"  # keys of the metadata; converted files have a different one
CHECKSUM = "sha256"  # the key in files from before the seal


def write(file: Path, params: Any, card: dict[str, Any], dtype: Any = None) -> None:
    """Writes parameters with their card, atomically. `dtype`: the type of all parameters in the file, e.g. float16 for half the size."""
    arrays = {path: np.asarray(leaf, dtype) for path, leaf in paths(params).items()}
    text = json.dumps(card)
    safetensors.write(file, arrays, {CARD: text, SEAL: _seal(arrays, text)})


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters, in float32 at least, and the card. Raises InputError for another kind of file, or a damaged one."""
    arrays, metadata = safetensors.read(file)
    if not {CARD, SEAL} & metadata.keys():
        raise InputError(f"{file}: holds another program's weights; make a checkpoint of it: brainseg convert {file} FOLDER")
    text = metadata.get(CARD, "")
    if not (metadata[SEAL] == _seal(arrays, text) if SEAL in metadata else metadata.get(CHECKSUM) == _checksum(arrays)):
        raise InputError(f"{file}: its numbers or its card are not those that were written; copy or download it again")
    try:
        card = json.loads(text)
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict):
        raise InputError(f"{file}: its card is damaged; copy or download it again")
    wide = {path: array.astype(np.promote_types(array.dtype, np.float32)) for path, array in arrays.items()}
    return unflatten(wide), card


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """A block that uses the card of `file`, whose errors become an InputError that blames the card: one from before the seal, or written by
    hand, can contain anything."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{file}: its card cannot be used ({reason}); copy or download it again, or use another checkpoint") from None


def is_network(file: Path) -> bool:
    """Whether a file was written by `write`, damaged or not."""
    try:
        return file.suffix == SUFFIX and CARD in safetensors.read(file)[1]
    except InputError:
        return False


def _seal(arrays: dict[str, np.ndarray], card: str) -> str:
    """The SHA-256 of the card's text and of every array with its path, type and shape."""
    digest = hashlib.sha256(card.encode(errors="surrogatepass"))
    for path, array in sorted(arrays.items()):
        digest.update(f"\0{path}\0{array.dtype}\0{array.shape}\0".encode(errors="surrogatepass"))
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for path, array in sorted(arrays.items()):
        digest.update(path.encode(errors="surrogatepass"))
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
