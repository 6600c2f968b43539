"""Transfer of a checkpoint's parts to fine-tuning, each completely or with an error.

"Loaded" weights that matched nothing are a silent failure in this field (research-contributions #268, #346), so every parameter of a part
has to match, and settings that shapes do not show, such as the order of patch merging, have to be the same in both configs.
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from brainseg_jax.config.keys import flat
from brainseg_jax.config.resolve import of_card
from brainseg_jax.core.errors import InputError
from brainseg_jax.core.pytree import count, mismatches, paths, unflatten
from brainseg_jax.models.encoders import ENCODERS
from brainseg_jax.weights import checkpoint

# Kernels applied to the image; channels are the fastest part of their last axis but one.
IMAGE_KERNELS = {path for spec in ENCODERS.values() for path in spec.image_kernels}
SHORTCUT = "decoder/encoder1/conv1/kernel"  # of a block that adds the image unchanged if it has as many channels


def load_parts(like: Any, config: ConfigDict, say: Callable[[str], None]) -> dict[str, Any]:
    """The parts of config.init.checkpoint, in host memory, for parameters like `like`, abstract or not; {} without a checkpoint.

    Raises InputError for a checkpoint without these parts, of another network, or with a missing, surplus or differently shaped parameter.
    Reports the loaded parts and differences in the preparation of data by `say`.
    """
    if not config.init.checkpoint:
        return {}
    folder = Path(config.init.checkpoint).expanduser()
    params, card = checkpoint.load(folder)
    theirs = of_card(card, folder)
    _check_same_network(folder, theirs, config)
    for part in config.init.parts:
        if part not in params:
            raise InputError(f"{folder}: has no {part}; it has {', '.join(params)}: set init.parts to some of these")
    if theirs.channels != config.channels:
        params = _spread(folder, {part: params[part] for part in config.init.parts}, theirs.channels, config)
        say(f"note: {folder} was trained on {theirs.channels} channels: {config.channels} channels share its first layers' mean kernel")
    for part in config.init.parts:
        if faults := mismatches(params[part], like[part]):
            raise InputError(
                f"{folder}: {len(faults)} of {len(paths(like[part]))} parameters of its {part} do not fit, e.g. {part}/{faults[0]}; use "
                f"the crop, table and sizes it was trained with, or leave {part} out of init.parts"
            )
    for key in ("data.spec", "data.spacing"):
        old, new = flat(theirs)[key], flat(config)[key]
        if old != new and "source" not in card:  # converted files do not record the preparation of scans
            say(f"note: {folder} was trained with {key} {old}, this run has {new}")
    parts = {part: jax.tree.map(np.asarray, params[part]) for part in config.init.parts}
    new = [name for name in like if name not in parts]
    say(f"{', '.join(parts)} from {folder}: all {count(parts):,} numbers; from scratch: {', '.join(new) or 'nothing'}")
    return parts


def spread_channels(leaves: dict[str, np.ndarray], old: int, new: int) -> dict[str, np.ndarray]:
    """Parameters by path for images of `new` channels instead of `old`, with the mean kernel, scaled, for each channel.

    For an image with equal channels the output does not change. Raises InputError if a decoder would need another shortcut.
    """

    def repeat_mean(kernel: np.ndarray) -> np.ndarray:
        by_channel = kernel.reshape(*kernel.shape[:-2], -1, old, kernel.shape[-1])
        repeated = np.repeat(by_channel.mean(axis=-2, keepdims=True), new, axis=-2) * np.float32(old / new)
        return repeated.reshape(*kernel.shape[:-2], -1, kernel.shape[-1])

    width = leaves[SHORTCUT].shape[-1] if SHORTCUT in leaves else 0
    if width in (old, new):
        raise InputError(f"a decoder of {width} channels adds its image without a convolution, so {new} channels need one trained anew")
    return {path: repeat_mean(leaf) if path in IMAGE_KERNELS else leaf for path, leaf in leaves.items()}


def merge_parameters(params: Any, parts: dict[str, Any]) -> Any:
    """`params` with these parts replaced, in the same types and shardings."""
    return params | {
        part: jax.tree.map(lambda new, old: jax.device_put(new.astype(old.dtype), old.sharding), tree, params[part])
        for part, tree in parts.items()
    }


def subjects_before(config: ConfigDict) -> tuple[str, ...]:
    """Hashes of the subjects that the checkpoint of config.init, or the one it began with, was trained on, if recorded."""
    if not config.init.checkpoint:
        return ()
    card = checkpoint.card(Path(config.init.checkpoint).expanduser())
    return tuple(sorted({*card.get("subjects", ()), *card.get("subjects_before", ())}))


def _check_same_network(folder: Path, theirs: ConfigDict, ours: ConfigDict) -> None:
    if theirs.encoder != ours.encoder:
        raise InputError(f"{folder}: holds a {theirs.encoder} encoder, and this config has {ours.encoder}; use the config made for it")
    old, new = flat(theirs), flat(ours)
    sizes = ENCODERS[ours.encoder].sizes(("encoder", *ours.init.parts)) + ["decoder"] * ("decoder" in ours.init.parts)
    if differ := sorted(key for key in sizes if old[key] != new[key]):
        old_values, new_values = (", ".join(f"{key} {config[key]}" for key in differ) for config in (old, new))
        flags = " ".join(shlex.quote(f"--config.{key}={old[key]}") for key in differ)
        raise InputError(f"{folder}: was trained with {old_values}, this config has {new_values}; add {flags}")


def _spread(folder: Path, parts: dict[str, Any], old: int, config: ConfigDict) -> dict[str, Any]:
    """The parts for the config's number of channels. Raises InputError unless config.init.channels is "repeat"."""
    if config.init.channels != "repeat":
        raise InputError(
            f"{folder}: was trained on images of channels {old}, this config has channels {config.channels}; add "
            "--config.init.channels=repeat to repeat its first layers' kernels over them"
        )
    try:
        return unflatten(spread_channels(jax.tree.map(np.asarray, paths(parts)), old, config.channels))
    except InputError as refusal:
        raise InputError(f"{folder}: {refusal}; leave decoder out of init.parts") from None
