"""What fine-tuning begins with: parts of another checkpoint, taken wholly or refused.

"Loaded" weights that matched nothing are this field's quietest failure (research-contributions #268, #346), so every parameter of a part
has to be there, and what shapes do not show, such as the order of patch merging, has to be the same in both configs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from brainseg_jax import checkpoint
from brainseg_jax.config import flat, from_resolved
from brainseg_jax.errors import InputError
from brainseg_jax.trees import count, paths

# Keys that change how a network trains, not what it computes.
OF_TRAINING = ("vit.drop_path", "swin.drop_path")


def transfer(params: Any, config: ConfigDict, say: Callable[[str], None]) -> Any:
    """`params` with config.init.parts from config.init.checkpoint in their place, as they lie on the devices.

    Raises InputError for a checkpoint without these parts, of another network, or with a parameter that is missing, surplus or of another
    shape. Says what was taken, and what of the data's preparation differs.
    """
    folder = Path(config.init.checkpoint).expanduser()
    found, card = checkpoint.load(folder)
    theirs = from_resolved(card["config"])
    _check_same_network(folder, theirs, config)
    for part in config.init.parts:
        if part not in found:
            raise InputError(f"{folder}: has no {part}; it has {', '.join(found)}: set init.parts to some of these")
        _check_same_shapes(folder, part, found[part], params[part])
    for key in ("data.spec", "data.spacing"):
        before, now = flat(theirs)[key], flat(config)[key]
        if before != now and "source" not in card:  # a converted file does not know how its scans were prepared
            say(f"note: {folder} was trained with {key} {before}, this run has {now}")
    taken = {part: jax.tree.map(lambda new, old: jax.device_put(np.asarray(new, old.dtype), old.sharding), found[part], params[part])
             for part in config.init.parts}  # fmt: skip
    new = [name for name in params if name not in taken]
    say(f"{', '.join(taken)} from {folder}: all {count(taken):,} numbers; from scratch: {', '.join(new) or 'nothing'}")
    return params | taken


def subjects_before(config: ConfigDict) -> tuple[str, ...]:
    """Hashes of the people that the checkpoint of config.init was trained on, itself or before; none where it does not say."""
    if not config.init.checkpoint:
        return ()
    card = checkpoint.card(Path(config.init.checkpoint).expanduser())
    return tuple(sorted({*card.get("subjects", ()), *card.get("subjects_before", ())}))


def _check_same_network(folder: Path, theirs: ConfigDict, ours: ConfigDict) -> None:
    if theirs.encoder != ours.encoder:
        raise InputError(f"{folder}: holds a {theirs.encoder} encoder, and this config has {ours.encoder}; use the config made for it")
    groups = [f"{ours.encoder}."] + (["decoder", "unetr."] if set(ours.init.parts) - {"encoder"} else [])
    before, now = flat(theirs), flat(ours)
    for key in now:
        features = key == "vit.features" and "decoder" not in ours.init.parts  # which maps the decoder gets
        if key.startswith(tuple(groups)) and key not in OF_TRAINING and not features and before[key] != now[key]:
            remedy = f"add --config.{key}={before[key]}"
            raise InputError(f"{folder}: was trained with {key} {before[key]}, this config has {now[key]}; {remedy}")


def _check_same_shapes(folder: Path, part: str, found: Any, wanted: Any) -> None:
    found, wanted = ({name: tuple(leaf.shape) for name, leaf in paths(tree).items()} for tree in (found, wanted))
    faults = [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
    if faults:
        there, here = (shapes.get(faults[0], "missing") for shapes in (found, wanted))
        raise InputError(
            f"{folder}: {len(faults)} of {len(wanted)} parameters of its {part} do not fit, e.g. {part}/{faults[0]} is {there} where "
            f"{here} is wanted; use the crop, table and sizes it was trained with, or leave {part} out of init.parts"
        )
