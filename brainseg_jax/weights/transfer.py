"""What fine-tuning begins with: parts of another checkpoint, taken wholly or refused.

"Loaded" weights that matched nothing are this field's quietest failure (research-contributions #268, #346), so every parameter of a part
has to be there, and what shapes do not show, such as the order of patch merging, has to be the same in both configs.
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

# Parameters that meet the image; channels are the fastest part of their last axis but one.
IMAGE_KERNELS = {path for spec in ENCODERS.values() for path in spec.image_kernels}
SHORTCUT = "decoder/encoder1/conv1/kernel"  # of a block that adds the image as it is, where it has as many channels


def load_parts(like: Any, config: ConfigDict, say: Callable[[str], None]) -> dict[str, Any]:
    """The parts of config.init.checkpoint, in host memory, that go into parameters like `like`, abstract or not; {} without a checkpoint.

    Raises InputError for a checkpoint without these parts, of another network, or with a parameter that is missing, surplus or of another
    shape. Says what is taken, and what of the data's preparation differs.
    """
    if not config.init.checkpoint:
        return {}
    folder = Path(config.init.checkpoint).expanduser()
    found, card = checkpoint.load(folder)
    theirs = of_card(card, folder)
    _check_same_network(folder, theirs, config)
    for part in config.init.parts:
        if part not in found:
            raise InputError(f"{folder}: has no {part}; it has {', '.join(found)}: set init.parts to some of these")
    if theirs.channels != config.channels:
        found = _spread(folder, {part: found[part] for part in config.init.parts}, theirs.channels, config)
        say(f"note: {folder} was trained on {theirs.channels} channels: {config.channels} channels share its first layers' mean kernel")
    for part in config.init.parts:
        if faults := mismatches(found[part], like[part]):
            raise InputError(
                f"{folder}: {len(faults)} of {len(paths(like[part]))} parameters of its {part} do not fit, e.g. {part}/{faults[0]}; use "
                f"the crop, table and sizes it was trained with, or leave {part} out of init.parts"
            )
    for key in ("data.spec", "data.spacing"):
        before, now = flat(theirs)[key], flat(config)[key]
        if before != now and "source" not in card:  # a converted file does not know how its scans were prepared
            say(f"note: {folder} was trained with {key} {before}, this run has {now}")
    parts = {part: jax.tree.map(np.asarray, found[part]) for part in config.init.parts}
    new = [name for name in like if name not in parts]
    say(f"{', '.join(parts)} from {folder}: all {count(parts):,} numbers; from scratch: {', '.join(new) or 'nothing'}")
    return parts


def spread_channels(leaves: dict[str, np.ndarray], old: int, new: int) -> dict[str, np.ndarray]:
    """Parameters by path, of a network for images of `old` channels, as those of one for `new`: all take the mean kernel, scaled.

    An image whose channels are all alike then gives what it gave before. Raises InputError where a decoder would need another shortcut.
    """

    def mean(kernel: np.ndarray) -> np.ndarray:
        by_channel = kernel.reshape(*kernel.shape[:-2], -1, old, kernel.shape[-1])
        repeated = np.repeat(by_channel.mean(axis=-2, keepdims=True), new, axis=-2) * np.float32(old / new)
        return repeated.reshape(*kernel.shape[:-2], -1, kernel.shape[-1])

    width = leaves[SHORTCUT].shape[-1] if SHORTCUT in leaves else 0
    if width in (old, new):
        raise InputError(f"a decoder of {width} channels adds its image without a convolution, so {new} channels need one trained anew")
    return {path: mean(leaf) if path in IMAGE_KERNELS else leaf for path, leaf in leaves.items()}


def merge_parameters(params: Any, parts: dict[str, Any]) -> Any:
    """`params` with these parts in their place, of the same types and as they lie on the devices."""
    return params | {
        part: jax.tree.map(lambda new, old: jax.device_put(new.astype(old.dtype), old.sharding), tree, params[part])
        for part, tree in parts.items()
    }


def subjects_before(config: ConfigDict) -> tuple[str, ...]:
    """Hashes of the people that the checkpoint of config.init was trained on, itself or before; none where it does not say."""
    if not config.init.checkpoint:
        return ()
    card = checkpoint.card(Path(config.init.checkpoint).expanduser())
    return tuple(sorted({*card.get("subjects", ()), *card.get("subjects_before", ())}))


def _check_same_network(folder: Path, theirs: ConfigDict, ours: ConfigDict) -> None:
    if theirs.encoder != ours.encoder:
        raise InputError(f"{folder}: holds a {theirs.encoder} encoder, and this config has {ours.encoder}; use the config made for it")
    before, now = flat(theirs), flat(ours)
    sizes = ENCODERS[ours.encoder].sizes(("encoder", *ours.init.parts)) + ["decoder"] * ("decoder" in ours.init.parts)
    if differ := sorted(key for key in sizes if before[key] != now[key]):
        there, here = (", ".join(f"{key} {of[key]}" for key in differ) for of in (before, now))
        flags = " ".join(shlex.quote(f"--config.{key}={before[key]}") for key in differ)
        raise InputError(f"{folder}: was trained with {there}, this config has {here}; add {flags}")


def _spread(folder: Path, parts: dict[str, Any], old: int, config: ConfigDict) -> dict[str, Any]:
    """The parts for images of the config's channels, if it asks for that."""
    if config.init.channels != "repeat":
        raise InputError(
            f"{folder}: was trained on images of channels {old}, this config has channels {config.channels}; add "
            "--config.init.channels=repeat to repeat its first layers' kernels over them"
        )
    try:
        return unflatten(spread_channels(jax.tree.map(np.asarray, paths(parts)), old, config.channels))
    except InputError as refusal:
        raise InputError(f"{folder}: {refusal}; leave decoder out of init.parts") from None
