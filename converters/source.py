"""What a file of weights holds: its tensors under plain keys, whatever wrapped them, and which network's they are."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brainseg_jax import safetensors
from brainseg_jax.errors import InputError, few
from converters import paper, swin_unetr, torchfile, unetr
from converters.rules import Dialect, Tensors

DIALECTS = (unetr.UNETR, paper.UNETR, swin_unetr.SWIN_UNETR, swin_unetr.SSL, swin_unetr.SWINVIT, swin_unetr.DISRUPTIVE, paper.MAE)
WRAPPERS = ("state_dict", "model", "model_state_dict", "network", "net")  # where files keep the weights
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.")  # what wrapping a network puts before all keys
METADATA = "brainseg_jax"  # the entry of a safetensors file where export writes down what shapes do not tell


class Source(NamedTuple):
    """What a file holds: its tensors under keys without prefixes, and values of our config that it tells of itself."""

    tensors: Tensors
    told: dict[str, Any]


def read(path: Path) -> Source:
    """The weights in a file, PyTorch's or safetensors. Raises InputError if there are none."""
    told: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        tensors, metadata = safetensors.read(path)
        if METADATA in metadata:
            told = _json(path, metadata[METADATA])
    else:
        tensors = _weights(torchfile.read(path))
    tensors = _without_prefixes(tensors)
    if not tensors:
        raise InputError(f"{path}: holds no weights; a file of torch.save(model.state_dict(), file) is expected")
    return Source(tensors, told)


def detect(tensors: Tensors, wanted: str = "") -> Dialect:
    """The first dialect whose marks are all among the keys, or the wanted one. Raises InputError if there is none, or it is another."""
    lacks = {d.name: [mark for mark in d.marks if mark not in tensors] for d in DIALECTS}
    fitting = [d for d in DIALECTS if not lacks[d.name]]
    if wanted:
        if lacks[wanted]:
            looks = f"it looks like {fitting[0].name}" if fitting else f"its {len(tensors)} keys are like {few(tensors)}"
            raise InputError(f"is no {wanted}, which has {lacks[wanted][0]}; {looks}; leave out --dialect, or check the file")
        return next(d for d in fitting if d.name == wanted)
    if not fitting:
        nearest = min(DIALECTS, key=lambda d: len(lacks[d.name]) / len(d.marks))
        hint = f"nearest is {nearest.what}, but {few(lacks[nearest.name])} is missing: get the whole file"
        if len(lacks[nearest.name]) == len(nearest.marks):
            hint = "give weights of MONAI's UNETR or SwinUNETR, of its research contributions' Swin pretraining, or of the paper's code"
        raise InputError(f"its {len(tensors)} keys, like {few(tensors)}, are of no network known here; {hint}")
    return fitting[0]


def _weights(content: dict[str, Any]) -> Tensors:
    for name in WRAPPERS:
        inner = content.get(name)
        if isinstance(inner, dict) and any(isinstance(value, np.ndarray) for value in inner.values()):
            content = inner
            break
    return {str(key): value for key, value in content.items() if isinstance(value, np.ndarray)}


def _without_prefixes(tensors: Tensors) -> Tensors:
    prefixes = (*PREFIXES, "swin_vit.", "swinViT.")  # the last two: a Swin encoder that was saved alone
    while tensors and (shared := [p for p in prefixes if all(key.startswith(p) for key in tensors)]):
        tensors = {key.removeprefix(shared[0]): tensor for key, tensor in tensors.items()}
    renamed = {re.sub(r"^swin_vit\.", "swinViT.", key): tensor for key, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise InputError("its keys begin with both swin_vit. and swinViT.; keep one of them")
    return renamed


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
        return {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    except (ValueError, AttributeError):
        raise InputError(f"{path}: its {METADATA} metadata are no JSON object; write the file again") from None
