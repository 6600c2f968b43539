"""Tensors of a file of weights under plain keys, without wrappers, and detection of the network."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brainseg_jax.core.errors import InputError, did_you_mean, first_few
from brainseg_jax.weights import safetensors
from converters import paper, swin_unetr, torchfile, unetr
from converters.rules import Dialect, Tensors

DIALECTS = (unetr.UNETR, paper.UNETR, swin_unetr.SWIN_UNETR, swin_unetr.SSL, swin_unetr.SWINVIT, swin_unetr.DISRUPTIVE, paper.MAE)
# Keys of the trained weights; "" is the file itself. Other keys with tensors hold others, e.g. a running mean.
WRAPPERS = ("state_dict", "model", "model_state_dict", "network", "net", "network_weights", "")
COPIES = ("ema", "ema_model", "model_ema", "online_model", "student", "teacher")  # prefixes of two networks in one dictionary
STATE = re.compile("optim|.*sched|.*scaler|amp|swag")  # keys with tensors that are not networks
NNUNET = ("encoder.stages.", "conv_blocks_context.")  # its keys, of version 2 and 1
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.")  # prefixes from wrapping a network
METADATA = "brainseg_jax"  # the metadata entry of exported files for values that shapes do not show


class Source(NamedTuple):
    """The content of a file: tensors under keys without prefixes, config values from its metadata, the name of this set of weights, and a
    line for the user if there are several sets."""

    tensors: Tensors
    told: dict[str, Any]
    name: str
    choice: str


def read(path: Path, wanted: str = "") -> Source:
    """The weights in a PyTorch or safetensors file; `wanted` names one of several sets (--weights). Raises InputError if there are none,
    and for several sets without a usual one."""
    told: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        content, metadata = safetensors.read(path)
        if METADATA in metadata:
            told = _json(path, metadata[METADATA])
    else:
        content = torchfile.read(path)
    found = sets(content)
    if not found:
        raise InputError(f"{path}: holds no weights; a file of torch.save(model.state_dict(), file) is expected")
    name = _chosen(path, list(found), wanted)
    others = [other for other in found if other not in (name, "")]
    also = f"; --weights takes {first_few(others)} instead" if others else ""
    choice = f"weights: {name or 'those of the file itself'}{also}" if others or name not in WRAPPERS else ""
    return Source(_without_prefixes(found[name]), told, name, choice)


def sets(content: dict[str, Any]) -> dict[str, Tensors]:
    """All sets of weights in a file's content by place, e.g. "state_dict" and "ema.module", without optimizers and logged tensors."""
    found = _sets(content)
    return {place: tensors for place, tensors in found.items() if any(tensor.ndim > 1 for tensor in tensors.values())} or found


def _sets(content: dict[str, Any], name: str = "", depth: int = 3) -> dict[str, Tensors]:
    found: dict[str, Tensors] = {}
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            first = str(key).partition(".")[0]
            copy = first if first in COPIES and "." in str(key) else ""
            found.setdefault(".".join(filter(None, (name, copy))), {})[str(key).removeprefix(f"{copy}." if copy else "")] = value
    for key, value in content.items() if depth else ():
        if isinstance(value, dict) and not STATE.match(str(key).lower()):
            found |= _sets(value, ".".join(filter(None, (name, str(key)))), depth - 1)
    return found


def _chosen(path: Path, names: list[str], wanted: str) -> str:
    if wanted and wanted not in names:
        raise InputError(
            f"--weights {wanted}: {path} has none of this name{did_you_mean(wanted, names)}; it has {first_few(filter(None, names), 9)}"
        )
    usual = [name for name in WRAPPERS if name in names]
    if not wanted and not usual and len(names) > 1:
        raise InputError(f"{path}: holds {len(names)} sets of weights; say which with --weights: {first_few(names, 9)}")
    return wanted or (usual or names)[0]


def detect(tensors: Tensors, wanted: str = "") -> Dialect:
    """The wanted dialect, or the first whose marks are all among the keys. Raises InputError if the marks are missing."""
    lacks = {d.name: [mark for mark in d.marks if mark not in tensors] for d in DIALECTS}
    fitting = [d for d in DIALECTS if not lacks[d.name]]
    if wanted:
        if lacks[wanted]:
            looks = f"it looks like {fitting[0].name}" if fitting else f"its {len(tensors)} keys are like {first_few(tensors)}"
            raise InputError(f"is no {wanted}, which has {lacks[wanted][0]}; {looks}; leave out --dialect, or check the file")
        return next(d for d in fitting if d.name == wanted)
    if not fitting and any(key.startswith(NNUNET) for key in tensors):
        raise InputError("holds a U-Net of nnU-Net's, whose weights cannot be converted yet; predict with nnU-Net itself")
    if not fitting:
        nearest = min(DIALECTS, key=lambda d: len(lacks[d.name]) / len(d.marks))
        hint = f"nearest is {nearest.what}, but {first_few(lacks[nearest.name])} is missing: get the whole file"
        if len(lacks[nearest.name]) == len(nearest.marks):
            hint = "give weights of MONAI's UNETR or SwinUNETR, of its research contributions' Swin pretraining, or of the paper's code"
        raise InputError(f"its {len(tensors)} keys, like {first_few(tensors)}, are of no network known here; {hint}")
    return fitting[0]


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
