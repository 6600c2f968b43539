"""x"""

import jax
import jax.numpy as jnp
import numpy as np

from brainseg_jax.models.windows import APART, WindowGrid, masks


def _one_by_one(c, q, k, v, bias):
    exact = jnp.promote_types(q.dtype, jnp.float32)
    bias = bias.astype(exact)
    mask, kinds = _masks_of(c, len(q))

    def one(window):
        *arrays, kind = window
        q, k, v = (a.swapaxes(0, 1) for a in arrays)
        scores = ((q * q.shape[-1] ** -0.5) @ k.mT).astype(exact) + bias
        if kind is not None:
            scores = scores + APART * mask[kind][None].astype(exact)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        return ((weights.astype(v.dtype) @ v) / total).astype(v.dtype).swapaxes(0, 1), largest + jnp.log(total)

    return jax.lax.map(one, (q, k, v, kinds))


def _one_by_one_gradient(c, q, k, v, bias, out, log_sum, gradient):
    exact = jnp.promote_types(q.dtype, jnp.float32)
    scale = q.shape[-1] ** -0.5
    # Scores with the keys in rows: then only one of the five products has to be transposed.
    turned = bias.mT.astype(exact)
    mask, kinds = _masks_of(c, len(q))

    def one(d_bias, window):
        *arrays, log_sum, kind = window
        q, k, v, out, g = (a.swapaxes(0, 1) for a in arrays)
        scores = (k @ (q * scale).mT).astype(exact) + turned
        if kind is not None:
            scores = scores + APART * mask[kind][None].astype(exact)
        weights = jnp.exp(scores - log_sum.mT)
        inner = jnp.sum((g * out).astype(exact), axis=-1, keepdims=True)
        d_scores = weights * ((v @ g.mT).astype(exact) - inner.mT)
        d = d_scores.astype(q.dtype)
        d_qkv = ((d.mT @ k) * scale, (d @ q) * scale, weights.astype(v.dtype) @ g)
        return d_bias + d_scores, tuple(a.swapaxes(0, 1) for a in d_qkv)

    d_bias, d_qkv = jax.lax.scan(one, jnp.zeros_like(turned), (q, k, v, out, gradient, log_sum, kinds))
    return (*d_qkv, d_bias.mT.astype(bias.dtype))


def _masks_of(c: WindowGrid, windows: int):
    """The masks, and for each of a batch's windows which is its own; None where nothing is shifted."""
    if not any(c.shift):
        return None, None
    mask, kinds = masks(c)
    return jnp.asarray(mask), jnp.asarray(np.tile(kinds, windows // len(kinds)))
