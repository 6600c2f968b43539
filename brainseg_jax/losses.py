"""Losses of segmentation, per sample, with the formula and its source. The gradients are written out: they keep one map where automatic
ones keep five, and with 36 classes a map is large."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

Logits = Float[jax.Array, "b x y z k"]
Labels = Int[jax.Array, "b x y z"]
VOXELS = (1, 2, 3)
TINY = 1e-6


@jax.custom_vjp
def dice_cross_entropy(logits: Logits, labels: Labels) -> Float[jax.Array, "b"]:
    """Soft Dice loss plus cross entropy, as the paper's code has it (MONAI's DiceCELoss with softmax, squared_pred, smooth_nr 0).

    Dice: 1 − 2 Σ p t / (Σ p² + Σ t² + 1e-6) over voxels, averaged over all classes, background included; a class that is absent from
    the labels counts 1 and pulls nothing. Cross entropy: mean over voxels. `labels` are classes from 0. In float32 at least.
    """
    return _forward(logits, labels)[0]


def _terms(logits, labels):
    """Probabilities, their logarithms, where each class is, and per class Σ p t and Σ p² + Σ t² + tiny [b 1 1 1 k]."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    logs = jax.nn.log_softmax(logits)
    p = jnp.exp(logs)
    here = labels[..., None] == jnp.arange(logits.shape[-1])[None, None, None, None]
    both = jnp.sum(jnp.where(here, p, 0), axis=VOXELS, keepdims=True)
    sizes = jnp.sum(jnp.square(p) + here, axis=VOXELS, keepdims=True) + TINY
    return p, logs, here, both, sizes


def _forward(logits, labels):
    _, logs, here, both, sizes = _terms(logits, labels)
    dice = 1 - jnp.mean(2 * both / sizes, axis=(*VOXELS, 4))
    entropy = -jnp.mean(jnp.sum(jnp.where(here, logs, 0), axis=-1), axis=VOXELS)
    return dice + entropy, (logits, labels)


def _backward(saved, g):
    logits, labels = saved
    p, _, here, both, sizes = _terms(logits, labels)
    classes, voxels = p.shape[-1], labels[0].size
    towards_p = (4 * both / jnp.square(sizes) * p - 2 * jnp.where(here, 1 / sizes, 0)) / classes
    through_softmax = p * (towards_p - jnp.sum(towards_p * p, axis=-1, keepdims=True))
    gradient = through_softmax + (p - here) / voxels
    return (g[:, None, None, None, None] * gradient).astype(logits.dtype), None


dice_cross_entropy.defvjp(_forward, _backward)
