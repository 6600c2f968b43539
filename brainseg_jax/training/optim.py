"""From the config to an optax chain: clip, Adam, decoupled weight decay, a warm-up cosine, and rates by path (0 freezes) or depth."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.pytree import by_pattern
from brainseg_jax.training import layer_decay


def schedule(optim: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate at a step: linear from 0 to `lr` over the first `warmup` share of the run, then half a cosine to 0 at its end.

    Raises InputError for a warm-up that is the whole run.
    """
    warm = round(optim.warmup * steps)
    if warm >= steps:
        raise InputError(
            f"optim.warmup {optim.warmup:g} of {steps} steps is all of them, which leaves nothing to cool down; use a smaller share"
        )
    return optax.warmup_cosine_decay_schedule(0.0 if warm else optim.lr, optim.lr, warm, steps)


def optimizer(optim: ConfigDict, steps: int, params: Any) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) for a tree of parameters, abstract or not. InputError for a pattern that matches nothing."""
    decayed = by_pattern([(pattern, True) for pattern in optim.decay], params, False, "optim.decay")
    chain = [clip(optim.clip)] if optim.clip else []
    chain += [
        optax.scale_by_adam(optim.b1, optim.b2),
        optax.add_decayed_weights(optim.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule(optim, steps)),
    ]
    if optim.lr_multipliers:
        factors = by_pattern(tuple(optim.lr_multipliers), params, 1.0, "optim.lr_multipliers")
        chain.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors)))
    if optim.layer_decay != 1:
        chain.append(layer_decay.decay(layer_decay.layers(params), optim.layer_decay))
    if optim.unfreeze:
        chain.append(layer_decay.unfreeze(layer_decay.layers(params), steps, optim.unfreeze))
    return optax.chain(*chain)


def clip(limit: float) -> optax.GradientTransformation:
    """Scales the gradient down to a global norm of at most `limit`.

    `optax.clip_by_global_norm` selects between two trees, which the CPU's compiler writes to memory in between: clipping then took longer
    than AdamW. One factor fuses into what follows.
    """

    def scale(updates: Any, _: Any) -> Any:
        factor = jnp.minimum(1.0, limit / jnp.maximum(optax.tree.norm(updates), 1e-12))
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates)

    return optax.stateless(scale)
