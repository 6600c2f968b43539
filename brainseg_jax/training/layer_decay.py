"""Rates by depth: an encoder's blocks learn slower the shallower they are, or are frozen and then freed from the deepest on.

A block is addressed by its path, or, where blocks are stacked and scanned, by its place along the leaf's first axis. Layer 0 is what comes
before the blocks (patches, positions, a stem), block i is layer i + 1, what follows the last block of a transformer is one more; a decoder
and a head are above all.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from brainseg_jax.core.pytree import map_paths, paths
from brainseg_jax.models.encoders import ENCODERS


class Layers(NamedTuple):
    """`of`: for each parameter its layer, an array that broadcasts against it; `top`: the encoder's last one."""

    of: Any
    top: int


def layers(params: Any) -> Layers:
    """The layer of every parameter of {"encoder", …}."""
    found = paths(params)
    # The encoder is told by what its blocks are called.
    spec = next(spec for spec in ENCODERS.values() if any(re.fullmatch(spec.blocks, path) for path in found))
    blocks = re.compile(spec.blocks)
    of = {path: m.groupdict() for path in found if (m := blocks.fullmatch(path))}
    staged = sorted({(int(at["stage"]), int(at["block"])) for at in of.values() if at.get("block")})
    top = (len(staged) or max(found[path].shape[0] for path in of)) + spec.followed

    def layer(path: str, leaf: Any) -> np.ndarray:
        if path not in of:
            return np.array(top if path.startswith("encoder/norm") else 0 if path.startswith("encoder/") else top + 1)
        if not staged:
            return np.arange(1, leaf.shape[0] + 1).reshape(-1, *[1] * (leaf.ndim - 1))
        stage, block, early = int(of[path]["stage"]), of[path]["block"], of[path].get("early")
        inside = [i for i, (s, _) in enumerate(staged, 1) if s == stage]
        # A stage's convolutions (v2) come with its first block, its merging with its last one.
        return np.array(1 + staged.index((stage, int(block))) if block else min(inside) if early else max(inside))

    return Layers(map_paths(layer, params), top)


def decay(found: Layers, factor: float) -> optax.GradientTransformation:
    """Updates times factor^(layers above, within the encoder) (Clark et al. 2020); decoder and head as they are."""
    scales = jax.tree.map(lambda layer: (factor ** np.maximum(found.top + 1 - layer, 0)).astype(np.float32), found.of)
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s.astype(u.dtype), updates, scales))


def unfreeze(found: Layers, steps: int, frozen: float) -> optax.GradientTransformation:
    """Updates of the encoder set to 0 in the first `frozen` share of the steps; then ⌊layers · (1 − progress)⌋ stay frozen, as the
    paper's code has it, by whole layers where it goes by tensors. Moments are kept from the start, so a freed layer begins smoothly."""
    warm = round(frozen * steps)

    def update(updates: Any, count: jax.Array, params: Any = None) -> tuple[Any, jax.Array]:
        progress = jnp.clip((count - warm) / max(steps - warm, 1), 0, 1)
        closed = jnp.floor((found.top + 1) * (1 - progress))
        free = jax.tree.map(lambda u, layer: jnp.where(layer < closed, jnp.zeros_like(u), u), updates, found.of)
        return free, count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
