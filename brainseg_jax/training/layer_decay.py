"""Layer-wise learning-rate decay and gradual unfreezing of an encoder, from the deepest block on.

A block is identified by its path or, where blocks are stacked for `scan`, by its index along the leaf's first axis. Layer 0 is what comes
before the blocks (patch and position embeddings, a stem), block i is layer i + 1, a transformer's final norm is the next; decoder and head
are above the encoder's last layer.
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
    """`of`: the layer of each parameter, an array that broadcasts against it; `top`: the encoder's last layer."""

    of: Any
    top: int


def layers(params: Any) -> Layers:
    """The layer of every parameter of {"encoder", …}."""
    leaves = paths(params)
    # The architecture is recognised by the names of its blocks.
    spec = next(spec for spec in ENCODERS.values() if any(re.fullmatch(spec.blocks, path) for path in leaves))
    blocks = {path: match.groupdict() for path in leaves if (match := re.fullmatch(spec.blocks, path))}
    staged = sorted({(int(names["stage"]), int(names["block"])) for names in blocks.values() if names.get("block")})
    top = (len(staged) or max(leaves[path].shape[0] for path in blocks)) + spec.followed

    def layer(path: str, leaf: Any) -> np.ndarray:
        if path not in blocks:
            return np.array(top if path.startswith("encoder/norm") else 0 if path.startswith("encoder/") else top + 1)
        if not staged:
            return np.arange(1, leaf.shape[0] + 1).reshape(-1, *[1] * (leaf.ndim - 1))
        stage, block, early = int(blocks[path]["stage"]), blocks[path]["block"], blocks[path].get("early")
        of_stage = [i for i, (s, _) in enumerate(staged, 1) if s == stage]
        # A stage's convolutions (v2) belong to its first block, its patch merging to its last one.
        return np.array(1 + staged.index((stage, int(block))) if block else min(of_stage) if early else max(of_stage))

    return Layers(map_paths(layer, params), top)


def decay(found: Layers, factor: float) -> optax.GradientTransformation:
    """Updates scaled by factor^(layers above, within the encoder) (Clark et al. 2020); decoder and head unscaled."""
    scales = jax.tree.map(lambda layer: (factor ** np.maximum(found.top + 1 - layer, 0)).astype(np.float32), found.of)
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s.astype(u.dtype), updates, scales))


def unfreeze(found: Layers, steps: int, frozen: float) -> optax.GradientTransformation:
    """Encoder updates set to 0 in the first `frozen` fraction of the steps; after that ⌊layers · (1 − progress)⌋ layers stay frozen, as in
    the paper's code, which counts tensors instead of layers. Moments are kept from the start, so that an unfrozen layer starts smoothly."""
    warm = round(frozen * steps)

    def update(updates: Any, count: jax.Array, params: Any = None) -> tuple[Any, jax.Array]:
        progress = jnp.clip((count - warm) / max(steps - warm, 1), 0, 1)
        closed = jnp.floor((found.top + 1) * (1 - progress))
        free = jax.tree.map(lambda u, layer: jnp.where(layer < closed, jnp.zeros_like(u), u), updates, found.of)
        return free, count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
