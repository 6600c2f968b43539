"""Losses of segmentation, per sample, with the formula and its source.

Each takes logits, or what a linear head makes logits of. With 36 classes a map of logits is the largest array of a small network, and its
softmax, gradient and products with labels are as large again. Through the head none of them is ever whole: sums and gradients are made of
some voxels at a time, and the logits computed again in the backward pass.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

Maps = Float[jax.Array, "b x y z f"]
Labels = Int[jax.Array, "b x y z"]
Head = dict[str, jax.Array]
TINY = 1e-6

# Voxels that are taken at a time: a CPU's cache holds what is made of them, a GPU is kept busy by an eighth of a crop.
CACHED = 256 * 1024  # logits
SLABS = 8


def dice_cross_entropy(maps: Maps, labels: Labels, head: Head | None = None) -> Float[jax.Array, "b"]:
    """Soft Dice loss plus cross entropy, as the paper's code has it (MONAI's DiceCELoss with softmax, squared_pred, smooth_nr 0).

    Dice: 1 − 2 Σ p t / (Σ p² + Σ t² + 1e-6) over voxels, averaged over all classes, background included; a class that is absent from
    the labels counts 1 and pulls nothing. Cross entropy: mean over voxels. `labels` are classes from 0. In float32 at least.

    `maps` are logits, or what a `head` makes them of: the parameters of a linear layer, "kernel" [f k] and "bias" [k].
    """
    return _dice_cross_entropy(_all_alike, 0.0, maps, labels, head)


def dice_of_present_cross_entropy(maps: Maps, labels: Labels, head: Head | None = None) -> Float[jax.Array, "b"]:
    """The same with Dice averaged over the classes that are in the sample's labels: how many a crop lacks does not change the balance.

    What is predicted of an absent class costs its cross entropy.
    """
    return _dice_cross_entropy(_those_present, 0.0, maps, labels, head)


def log_dice_of_present_cross_entropy(maps: Maps, labels: Labels, head: Head | None = None) -> Float[jax.Array, "b"]:
    """The same with −log(Dice + 0.001) of each class in place of 1 − Dice (Wong et al. 2018, without their exponents).

    Where a class is hardly predicted at all, 1 − Dice has no slope and cross entropy one as small as the class: of many small classes some
    are not found for a long time. This one's slope does not vanish there.
    """
    return _dice_cross_entropy(_those_present, 1e-3, maps, labels, head)


def _all_alike(voxels):
    return jnp.full_like(voxels, 1 / len(voxels))


def _those_present(voxels):
    present = (voxels > 0).astype(voxels.dtype)
    return present / jnp.sum(present, axis=0, keepdims=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dice_cross_entropy(weigh, floor, maps, labels, head):
    """`weigh` turns voxels of each class [k b] into what the class counts in the mean; `floor`: that of the logarithm, 0 for none."""
    return _forward(weigh, floor, maps, labels, head)[0]


def _forward(weigh, floor, maps, labels, head):
    both, squares, voxels, logs = _at_a_time(_sums, maps, labels, head)
    sizes, weights = squares + voxels + TINY, weigh(voxels)
    dice = 2 * both / sizes
    if floor:
        lost, weights = -jnp.sum(weights * jnp.log(dice + floor), axis=0), weights / (dice + floor)
    else:
        lost = 1 - jnp.sum(weights * dice, axis=0)
    return lost - logs / labels[0].size, (maps, labels, head, 4 * weights * both / jnp.square(sizes), 2 * weights / sizes)


def _backward(weigh, floor, saved, g):
    maps, labels, head, *factors = saved
    d_maps, d_head = _at_a_time(_gradients, maps, labels, head, *factors, g)
    return d_maps.reshape(maps.shape), None, d_head


_dice_cross_entropy.defvjp(_forward, _backward)


def _at_a_time(function, maps, labels, head, *more):
    """`function` with the number of voxels at a time, and the way to add them up, that suit the platform."""
    if maps.shape[:-1] != labels.shape:
        raise ValueError(f"maps {maps.shape} and labels {labels.shape} are not on one grid")
    of_sample = labels[0].size
    classes = maps.shape[-1] if head is None else len(head["bias"])
    few, many = (_divisor(of_sample, most) for most in (CACHED // (classes * len(maps)), -(-of_sample // SLABS)))
    arguments = (maps.reshape(len(maps), of_sample, -1), labels.reshape(len(labels), of_sample), head, *more)
    forms = {"cpu": partial(function, few, _added_by_product), "default": partial(function, many, partial(jnp.sum, axis=-1))}
    return jax.lax.platform_dependent(*arguments, **forms)


def _divisor(n, most):
    return max(i for i in range(1, max(most, 1) + 1) if n % i == 0)


def _added_by_product(x):
    """The sum along the last axis, which XLA adds up number by number on a CPU."""
    return x @ jnp.ones(x.shape[-1], x.dtype)


def _chunk(maps, labels, head, start, n):
    """Of n voxels of each sample: what the logits are made of [v f], the logits [k v] in float32 at least, where each class is [k v].

    Classes first: a maximum or a sum over them then goes voxel by voxel side by side.
    """
    own, classes = (jax.lax.dynamic_slice_in_dim(a, start, n, axis=1) for a in (maps, labels))
    own, exact = own.reshape(-1, own.shape[-1]), jnp.promote_types(maps.dtype, jnp.float32)
    if head is None:
        logits = own.T.astype(exact)
    else:
        logits = (
            jnp.einsum("fk,vf->kv", head["kernel"].astype(own.dtype), own, preferred_element_type=exact)
            + head["bias"].astype(exact)[:, None]
        )
    return own, logits, classes.reshape(1, -1) == jnp.arange(len(logits))[:, None]


def _softmax(logits):
    """(probabilities, logarithm of what they were divided by)."""
    largest = jnp.max(logits, axis=0, keepdims=True)
    raised = jnp.exp(logits - largest)
    total = jnp.sum(raised, axis=0, keepdims=True)
    return raised * (1 / total), largest + jnp.log(total)


def _sums(n, added, maps, labels, head):
    """Over voxels, of each class and sample [k b]: Σ p t, Σ p², Σ t; of each sample [b]: Σ log p of the true class."""
    exact = jnp.promote_types(maps.dtype, jnp.float32)

    def add(totals, start):
        _, logits, here = _chunk(maps, labels, head, start, n)
        p, log_total = _softmax(logits)
        log_true = jnp.sum(jnp.where(here, logits, 0), axis=0, keepdims=True) - log_total
        parts = (jnp.where(here, p, 0), jnp.square(p), here.astype(exact), log_true)
        return jax.tree.map(lambda total, part: total + added(part.reshape(*total.shape, n)), totals, parts), None

    b, voxels, f = maps.shape
    zeros = jnp.zeros((f if head is None else len(head["bias"]), b), exact)
    return jax.lax.scan(add, (zeros, zeros, zeros, zeros[0]), jnp.arange(0, voxels, n))[0]


def _gradients(n, added, maps, labels, head, of_p, of_true, g):
    """Towards maps and head; Dice's towards a probability is `of_p` · p, less `of_true` where the class is the true one."""
    exact = jnp.promote_types(maps.dtype, jnp.float32)
    b, voxels, f = maps.shape
    of_p, of_true, g = (jnp.repeat(a, n, axis=-1) for a in (of_p, of_true, g[None]))

    def one(d_head, start):
        own, logits, here = _chunk(maps, labels, head, start, n)
        p, _ = _softmax(logits)
        towards_p = of_p * p - jnp.where(here, of_true, 0)
        d = g * (p * (towards_p - jnp.sum(towards_p * p, axis=0, keepdims=True)) + (p - here) / voxels)
        if head is None:
            return d_head, d.T.reshape(b, n, f).astype(maps.dtype)
        narrow = d.astype(own.dtype)
        # Of each sample for itself: a sum over samples would be sent between devices for every few voxels.
        d_kernel = jnp.einsum("kbn,bnf->bkf", narrow.reshape(-1, b, n), own.reshape(b, n, f), preferred_element_type=exact)
        d_bias = added(d.reshape(-1, b, n))
        d_head = {"kernel": d_head["kernel"] + d_kernel.swapaxes(1, 2), "bias": d_head["bias"] + d_bias.T}
        return d_head, (narrow.T @ head["kernel"].T.astype(own.dtype)).reshape(b, n, f)

    zeros = None if head is None else jax.tree.map(lambda leaf: jnp.zeros((b, *leaf.shape), exact), head)
    d_head, d_maps = jax.lax.scan(one, zeros, jnp.arange(0, voxels, n))
    if head is not None:
        d_head = jax.tree.map(lambda d, leaf: jnp.sum(d, axis=0).astype(leaf.dtype), d_head, head)
    return jnp.moveaxis(d_maps, 0, 1).reshape(maps.shape), d_head
