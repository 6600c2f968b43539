"""Losses of segmentation, per sample, with the formula and its source. The gradients are written out: they keep one map where automatic
ones keep five, and with 36 classes a map is large."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

Logits = Float[jax.Array, "b x y z k"]
Labels = Int[jax.Array, "b x y z"]
VOXELS = (1, 2, 3)
TINY = 1e-6


def dice_cross_entropy(logits: Logits, labels: Labels) -> Float[jax.Array, "b"]:
    """Soft Dice loss plus cross entropy, as the paper's code has it (MONAI's DiceCELoss with softmax, squared_pred, smooth_nr 0).

    Dice: 1 − 2 Σ p t / (Σ p² + Σ t² + 1e-6) over voxels, averaged over all classes, background included; a class that is absent from
    the labels counts 1 and pulls nothing. Cross entropy: mean over voxels. `labels` are classes from 0. In float32 at least.
    """
    return _dice_cross_entropy(_all_alike, 0.0, logits, labels)


def dice_of_present_cross_entropy(logits: Logits, labels: Labels) -> Float[jax.Array, "b"]:
    """The same with Dice averaged over the classes that are in the sample's labels: how many a crop lacks does not change the balance.

    What is predicted of an absent class costs its cross entropy.
    """
    return _dice_cross_entropy(_those_present, 0.0, logits, labels)


def log_dice_of_present_cross_entropy(logits: Logits, labels: Labels) -> Float[jax.Array, "b"]:
    """The same with −log(Dice + 0.001) of each class in place of 1 − Dice (Wong et al. 2018, without their exponents).

    Where a class is hardly predicted at all, 1 − Dice has no slope and cross entropy one as small as the class: of many small classes some
    are not found for a long time. This one's slope does not vanish there.
    """
    return _dice_cross_entropy(_those_present, 1e-3, logits, labels)


def _all_alike(voxels):
    return jnp.full_like(voxels, 1 / voxels.shape[-1])


def _those_present(voxels):
    present = (voxels > 0).astype(voxels.dtype)
    return present / jnp.sum(present, axis=-1, keepdims=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dice_cross_entropy(weigh, floor, logits, labels):
    """`weigh` turns voxels of each class [b 1 1 1 k] into what the class counts in the mean; `floor`: that of the logarithm, 0 for none."""
    return _forward(weigh, floor, logits, labels)[0]


def _slabs(logits, labels):
    """(number of slabs along x, i → the i-th: logits in float32 at least, where each class is). Taken one after the other, they bound
    what the loss needs beside the logits to a fraction of their size."""
    n = max(i for i in range(1, 9) if logits.shape[1] % i == 0)
    thick = logits.shape[1] // n

    def slab(i):
        own, classes = (jax.lax.dynamic_slice_in_dim(a, i * thick, thick, axis=1) for a in (logits, labels))
        here = classes[..., None] == jnp.arange(logits.shape[-1])[None, None, None, None]
        return own.astype(jnp.promote_types(logits.dtype, jnp.float32)), here

    return n, slab


def _forward(weigh, floor, logits, labels):
    n, slab = _slabs(logits, labels)

    def add(totals, i):
        own, here = slab(i)
        logs = jax.nn.log_softmax(own)
        p = jnp.exp(logs)
        parts = (jnp.where(here, p, 0), jnp.square(p), here.astype(p.dtype), jnp.where(here, logs, 0))
        return jax.tree.map(lambda total, part: total + jnp.sum(part, axis=VOXELS, keepdims=True), totals, parts), None

    zeros = jnp.zeros((len(logits), 1, 1, 1, logits.shape[-1]), jnp.promote_types(logits.dtype, jnp.float32))
    (both, squares, voxels, logs), _ = jax.lax.scan(add, (zeros,) * 4, jnp.arange(n))
    sizes, weights = squares + voxels + TINY, weigh(voxels)
    dice = 2 * both / sizes
    if floor:
        lost, weights = -jnp.sum(weights * jnp.log(dice + floor), axis=(*VOXELS, 4)), weights / (dice + floor)
    else:
        lost = 1 - jnp.sum(weights * dice, axis=(*VOXELS, 4))
    entropy = -jnp.sum(logs, axis=(*VOXELS, 4)) / labels[0].size
    return lost + entropy, (logits, labels, both, sizes, weights)


def _backward(weigh, floor, saved, g):
    logits, labels, both, sizes, weights = saved
    n, slab = _slabs(logits, labels)
    voxels = labels[0].size

    def one(i):
        own, here = slab(i)
        p = jax.nn.softmax(own)
        towards_p = weights * (4 * both / jnp.square(sizes) * p - 2 * jnp.where(here, 1 / sizes, 0))
        through_softmax = p * (towards_p - jnp.sum(towards_p * p, axis=-1, keepdims=True))
        return (g[:, None, None, None, None] * (through_softmax + (p - here) / voxels)).astype(logits.dtype)

    return jnp.moveaxis(jax.lax.map(one, jnp.arange(n)), 0, 1).reshape(logits.shape), None


_dice_cross_entropy.defvjp(_forward, _backward)
