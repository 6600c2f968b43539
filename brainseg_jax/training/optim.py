"""The optimizer of a config: clipping, AdamW, warm-up cosine, and learning-rate multipliers by path (0 freezes) or depth, in optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.pytree import by_pattern
from brainseg_jax.training import layer_decay


def schedule(optim: ConfigDict, steps: int) -> optax.Schedule:
    """The learning rate at a step: linear from 0 to `lr` over the first `warmup` fraction of the run, then a half cosine to 0.

    Raises InputError for a warm-up of the whole run.
    """
    warm = round(optim.warmup * steps)
    if warm >= steps:
        why = "is all of them, which leaves nothing to cool down"
        raise InputError(f"optim.warmup {optim.warmup:g} of {steps} steps {why}; use a smaller share")
    return optax.warmup_cosine_decay_schedule(0.0 if warm else optim.lr, optim.lr, warm, steps)


def optimizer(optim: ConfigDict, steps: int, params: Any) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) for concrete or abstract parameters. Raises InputError for a pattern that matches nothing."""
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
    """Gradient clipping to a global norm of at most `limit`.

    `optax.clip_by_global_norm` selects between two trees, which XLA on a CPU writes to memory: it took longer than AdamW. A single factor
    is fused into the next operation.
    """

    def scale(updates: Any, _: Any) -> Any:
        factor = jnp.minimum(1.0, limit / jnp.maximum(optax.tree.norm(updates), 1e-12))
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates)

    return optax.stateless(scale)
