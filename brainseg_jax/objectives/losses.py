"""Segmentation losses per sample, with formula and source.

Each takes logits, or the input of a linear head and the head. With 36 classes the logits are the largest array of a small network, and
their softmax, gradient and products with labels are as large again. With the head none of these is held whole: sums and gradients are
computed in chunks of voxels, and the logits are recomputed in the backward pass.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

Maps = Float[jax.Array, "b x y z f"]
Labels = Int[jax.Array, "b x y z"]
Head = dict[str, jax.Array]
TINY = 1e-6

# Size of a chunk: on a CPU as many logits as fit its cache; on a GPU an eighth of a crop, which keeps it busy.
CACHED = 256 * 1024
SLABS = 8


def dice_cross_entropy(maps: Maps, labels: Labels, head: Head | None = None) -> Float[jax.Array, "b"]:
    """Soft Dice loss plus cross entropy, as in the paper's code (MONAI's DiceCELoss with softmax, squared_pred, smooth_nr 0).

    Dice: 1 − 2 Σ p t / (Σ p² + Σ t² + 1e-6) over voxels, averaged over all classes, background included; a class absent from the labels
    counts 1 and has no gradient. Cross entropy: mean over voxels. `labels` are classes from 0. In float32 at least.

    `maps` are logits or, with a `head`, its input; `head` holds the parameters of a linear layer, "kernel" [f k] and "bias" [k].
    """
    return _dice_cross_entropy(_equal_weights, 0.0, maps, labels, head)


def dice_of_present_cross_entropy(maps: Maps, labels: Labels, head: Head | None = None) -> Float[jax.Array, "b"]:
    """`dice_cross_entropy` with Dice averaged over the classes in the sample's labels only, so that the balance between the two terms does
    not depend on how many classes a crop lacks. Voxels predicted as an absent class cost cross entropy."""
    return _dice_cross_entropy(_present_weights, 0.0, maps, labels, head)


def log_dice_of_present_cross_entropy(maps: Maps, labels: Labels, head: Head | None = None) -> Float[jax.Array, "b"]:
    """`dice_of_present_cross_entropy` with −log(Dice + 0.001) of each class for 1 − Dice (Wong et al. 2018, without their exponents).

    While a class is hardly predicted, the gradient of 1 − Dice vanishes and that of cross entropy is as small as the class, so that some of
    many small classes are not learned for a long time. The gradient of the logarithm does not vanish.
    """
    return _dice_cross_entropy(_present_weights, 1e-3, maps, labels, head)


def _equal_weights(voxels):
    return jnp.full_like(voxels, 1 / len(voxels))


def _present_weights(voxels):
    present = (voxels > 0).astype(voxels.dtype)
    return present / jnp.sum(present, axis=0, keepdims=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dice_cross_entropy(class_weights, floor, maps, labels, head):
    """`class_weights`: from voxels of each class [k b] to weights of the mean; `floor`: added to Dice in the logarithm, 0: 1 − Dice."""
    return _forward(class_weights, floor, maps, labels, head)[0]


def _forward(class_weights, floor, maps, labels, head):
    overlap, squares, voxels, log_true = _by_chunks(_sums, maps, labels, head)
    sizes, weights = squares + voxels + TINY, class_weights(voxels)
    dice = 2 * overlap / sizes
    if floor:
        loss, weights = -jnp.sum(weights * jnp.log(dice + floor), axis=0), weights / (dice + floor)
    else:
        loss = 1 - jnp.sum(weights * dice, axis=0)
    return loss - log_true / labels[0].size, (maps, labels, head, 4 * weights * overlap / jnp.square(sizes), 2 * weights / sizes)


def _backward(class_weights, floor, saved, g):
    maps, labels, head, *factors = saved
    d_maps, d_head = _by_chunks(_gradients, maps, labels, head, *factors, g)
    return d_maps.reshape(maps.shape), None, d_head


_dice_cross_entropy.defvjp(_forward, _backward)


def _by_chunks(function, maps, labels, head, *factors):
    """`function(n, add_up, …)`, n voxels at a time, with the chunk size n and the summation that suit the platform."""
    if maps.shape[:-1] != labels.shape:
        raise ValueError(f"maps {maps.shape} and labels {labels.shape} are not on one grid")
    b, voxels = len(maps), labels[0].size
    sizes = (CACHED // (_classes(maps, head) * b), -(-voxels // SLABS))
    small, large = (max(n for n in range(1, max(most, 1) + 1) if voxels % n == 0) for most in sizes)
    # On a CPU XLA adds up a last axis number by number, so that a product with ones is faster.
    forms = {
        "cpu": partial(function, small, lambda x: x @ jnp.ones(x.shape[-1], x.dtype)),
        "default": partial(function, large, partial(jnp.sum, axis=-1)),
    }
    return jax.lax.platform_dependent(maps.reshape(b, voxels, -1), labels.reshape(b, voxels), head, *factors, **forms)


def _classes(maps, head):
    return (maps if head is None else head["bias"]).shape[-1]


def _chunk(maps, labels, head, start, n):
    """For n voxels of each sample: the maps [v f]; logits, in float32 at least, and one-hot labels [k v]; the softmax and the logarithm of
    its denominator. Classes come first, so that XLA vectorises sums and maxima over them across voxels."""
    x, classes = (jax.lax.dynamic_slice_in_dim(a, start, n, axis=1) for a in (maps, labels))
    x, exact = x.reshape(-1, x.shape[-1]), jnp.promote_types(maps.dtype, jnp.float32)
    if head is None:
        logits = x.T.astype(exact)
    else:
        logits = jnp.einsum("fk,vf->kv", head["kernel"].astype(x.dtype), x, preferred_element_type=exact)
        logits += head["bias"].astype(exact)[:, None]
    largest = jnp.max(logits, axis=0, keepdims=True)
    exponentials = jnp.exp(logits - largest)
    total = jnp.sum(exponentials, axis=0, keepdims=True)
    one_hot = classes.reshape(1, -1) == jnp.arange(len(logits))[:, None]
    return x, logits, one_hot, exponentials * (1 / total), largest + jnp.log(total)


def _sums(n, add_up, maps, labels, head):
    """Sums over voxels, of each class and sample [k b]: Σ p t, Σ p², Σ t; of each sample [b]: Σ log p of the true class."""
    b, voxels, _ = maps.shape
    zeros = jnp.zeros((_classes(maps, head), b), jnp.promote_types(maps.dtype, jnp.float32))

    def add_chunk(totals, start):
        _, logits, one_hot, p, log_total = _chunk(maps, labels, head, start, n)
        log_true = jnp.sum(jnp.where(one_hot, logits, 0), axis=0, keepdims=True) - log_total
        parts = (jnp.where(one_hot, p, 0), jnp.square(p), one_hot.astype(zeros.dtype), log_true)
        return jax.tree.map(lambda total, part: total + add_up(part.reshape(*total.shape, n)), totals, parts), None

    return jax.lax.scan(add_chunk, (zeros, zeros, zeros, zeros[0]), jnp.arange(0, voxels, n))[0]


def _gradients(n, add_up, maps, labels, head, p_factor, true_factor, g):
    """The gradients for maps and head. Dice's gradient for a probability is `p_factor` · p, less `true_factor` at the true class."""
    exact = jnp.promote_types(maps.dtype, jnp.float32)
    b, voxels, f = maps.shape
    p_factor, true_factor, g = (jnp.repeat(a, n, axis=-1) for a in (p_factor, true_factor, g[None]))

    def add_chunk(d_head, start):
        x, _, one_hot, p, _ = _chunk(maps, labels, head, start, n)
        d_p = p_factor * p - jnp.where(one_hot, true_factor, 0)
        d_logits = g * (p * (d_p - jnp.sum(d_p * p, axis=0, keepdims=True)) + (p - one_hot) / voxels)
        if head is None:
            return d_head, d_logits.T.reshape(b, n, f).astype(maps.dtype)
        narrow = d_logits.astype(x.dtype)
        # Separately for each sample: a sum over samples would be exchanged between devices in every chunk.
        d_kernel = jnp.einsum("kbn,bnf->bkf", narrow.reshape(-1, b, n), x.reshape(b, n, f), preferred_element_type=exact)
        d_bias = add_up(d_logits.reshape(-1, b, n))
        d_head = {"kernel": d_head["kernel"] + d_kernel.swapaxes(1, 2), "bias": d_head["bias"] + d_bias.T}
        return d_head, (narrow.T @ head["kernel"].T.astype(x.dtype)).reshape(b, n, f)

    zeros = jax.tree.map(lambda leaf: jnp.zeros((b, *leaf.shape), exact), head)  # None without a head, here and below
    d_head, d_maps = jax.lax.scan(add_chunk, zeros, jnp.arange(0, voxels, n))
    d_head = jax.tree.map(lambda d, leaf: jnp.sum(d, axis=0).astype(leaf.dtype), d_head, head)
    return jnp.moveaxis(d_maps, 0, 1).reshape(maps.shape), d_head
