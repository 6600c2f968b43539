"""The result of a conversion in either direction, and its description."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from converters.rules import Dialect, Leaves, Tensors

# Config values that neither keys nor shapes determine; our own .safetensors files have them as metadata.
UNSEEN = ("vit.heads", "mae.heads", "mae.mask_ratio", "swin.merging", "data.crop")

MERGINGS = {"legacy": "MONAI 0.9 to 1.4's", "merging": "MONAI 1.5's and later", "mergingv2": "made with downsample mergingv2"}


class Conversion(NamedTuple):
    """A network in our form and in theirs, with facts for card and certificate, and a report for the user."""

    config: ConfigDict
    leaves: Leaves
    tensors: Tensors
    dialect: Dialect
    facts: dict[str, Any]
    report: list[str]


def summary(config: ConfigDict, leaves: Leaves) -> str:
    """A one-line description of a network."""
    if config.encoder == "vit":
        network = f"ViT {config.vit.width} wide, {config.vit.depth} deep, {config.vit.heads} heads"
    else:
        merging = f'patch merging "{config.swin.merging}" ({MERGINGS[config.swin.merging]})'
        network = f"Swin {config.swin.width} wide, {merging}{', v2' if config.swin.v2 else ''}"
    classes = f", {config.classes} classes" if config.objective == "segmentation" else ""
    channels = f"{config.channels} channel{'s' * (config.channels > 1)}"
    numbers = sum(leaf.size for leaf in leaves.values())
    return f"{network}, crops {tuple(config.data.crop)}, {channels}{classes}; {numbers:,} parameters"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
