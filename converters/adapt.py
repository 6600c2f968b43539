"""Adaptation of a converted network to other channels, classes or crops, by the --to- flags."""

import argparse

import numpy as np
from ml_collections import ConfigDict

from brainseg_jax.core.errors import InputError
from converters import swin_unetr
from converters.rules import Leaves


def adapted(config: ConfigDict, leaves: Leaves, options: argparse.Namespace) -> tuple[ConfigDict, Leaves, list[str], list[str]]:
    """The network adapted by the --to- flags: (config, leaves, paths left out, changes in words)."""
    config, left, done = config.copy_and_resolve_references(), [], []
    if options.to_channels and options.to_channels != config.channels:
        leaves = to_channels(leaves, config.channels, options.to_channels)
        done.append(f"channels {config.channels} to {options.to_channels}: all take the mean kernel, scaled")
        config.channels = options.to_channels
    if options.to_classes and "head/kernel" not in leaves:
        raise InputError("--to-classes: there is no head for classes in it; leave it out")
    if options.to_classes and options.to_classes != config.classes:
        left = [path for path in leaves if path.startswith("head/")]
        leaves = {path: leaf for path, leaf in leaves.items() if path not in left}
        done.append(f"classes {config.classes} to {options.to_classes}: the head is left out, to be trained anew")
        config.classes = options.to_classes
    if options.to_crop and options.to_crop != tuple(config.data.crop):
        if config.encoder == "swin":
            swin_unetr.checked_crop("--to-crop", options.to_crop)
            done.append(f"crop {tuple(config.data.crop)} to {options.to_crop}: no number changes")
        else:
            leaves = to_crop(leaves, config.vit.patch, tuple(config.data.crop), options.to_crop)
            done.append(f"crop {tuple(config.data.crop)} to {options.to_crop}: positions interpolated")
        config.data.crop = options.to_crop
    return config, leaves, left, done


def to_channels(leaves: Leaves, old: int, new: int) -> Leaves:
    """The network for images of `new` channels (see `transfer.spread_channels`). Raises InputError for heads that reconstruct images."""
    from brainseg_jax.weights.transfer import spread_channels

    if any(path.split("/")[0] not in ("encoder", "decoder", "head") for path in leaves):
        raise InputError("--to-channels: the heads of pretraining reconstruct the image they were trained on; leave it out")
    try:
        return spread_channels(leaves, old, new)
    except InputError as refusal:
        raise InputError(f"--to-channels {new}: {refusal}") from None


def to_crop(leaves: Leaves, patch: int, old: tuple[int, int, int], new: tuple[int, int, int]) -> Leaves:
    """The network with learned positions for another crop, by linear interpolation (antialiased if the grid becomes smaller)."""
    import jax

    if any(n % patch for n in new):
        raise InputError(f"--to-crop {','.join(map(str, new))}: give multiples of the patch, {patch}")
    (x, *plane), (x_new, *plane_new) = ([n // patch for n in crop] for crop in (old, new))
    grids = {"table": ((x, *plane), (x_new, *plane_new)), "spatial": (plane, plane_new), "temporal": ((x,), (x_new,))}

    def resized(path: str, leaf: np.ndarray) -> np.ndarray:
        *_, part, name = ("", *path.split("/"))
        if part != "position":
            return leaf
        grid, grid_new = grids[name]
        width = leaf.shape[-1]
        return np.asarray(jax.image.resize(leaf.reshape(*grid, width), (*grid_new, width), "linear")).reshape(-1, width)

    return {path: resized(path, leaf) for path, leaf in leaves.items()}
