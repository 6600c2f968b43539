"""Attention for a CPU: one head, or one window, after the other, so that scores stay in a core's cache.

XLA's batched form on a CPU writes every head's n × n weights to memory and reads them in the gradient. Here the weights are recomputed in
the backward pass from the log of their sum, as Dao et al. 2022 do on a GPU. `scripts/benchmark.py --mode attention` compares the two.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from brainseg_jax.models.windows import APART, WindowGrid, masks


def head_by_head(q, k, v):
    """Attention softmax(q kᵀ / √e) v [b n h e], and the log of the weights' sum [b n h 1]."""

    def attend(q, k, v):
        return _softmax_product(((q * q.shape[-1] ** -0.5) @ k.T).astype(jnp.promote_types(q.dtype, jnp.float32)), v)

    return _over_heads(attend, q, k, v)


def _softmax_product(scores, v):
    """softmax(scores) v, and the log of the weights' sum."""
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return ((weights.astype(v.dtype) @ v) / total).astype(v.dtype), largest + jnp.log(total)


def head_by_head_gradient(q, k, v, out, log_sum, gradient):
    """The gradients of `head_by_head`'s first result for q, k and v."""
    scale = q.shape[-1] ** -0.5
    exact = jnp.promote_types(q.dtype, jnp.float32)
    inner = jnp.sum((gradient * out).astype(exact), axis=-1, keepdims=True)

    def gradients(q, k, v, log_sum, inner, g):
        # With keys in the rows of the weights only one of the five products has to be transposed.
        weights = jnp.exp((k @ (q * scale).T).astype(exact) - log_sum.T)
        d_scores = (weights * ((v @ g.T) - inner.T)).astype(q.dtype)
        return (d_scores.T @ k) * scale, (d_scores @ q) * scale, weights.astype(v.dtype) @ g

    return _over_heads(gradients, q, k, v, log_sum, inner, gradient)


def _over_heads(f: Callable, *arrays: jax.Array):
    """f mapped over samples and heads, one after the other; its arguments are [n e] matrices."""
    b, _, h, _ = arrays[0].shape
    rows = tuple(a.transpose(0, 2, 1, 3).reshape(b * h, a.shape[1], a.shape[3]) for a in arrays)
    mapped = jax.lax.map(lambda row: f(*row), rows)
    return jax.tree.map(lambda a: a.reshape(b, h, *a.shape[1:]).transpose(0, 2, 1, 3), mapped)


def window_by_window(c, q, k, v, bias):
    """`swin.attend_windows` [w n h e], and the log of the weights' sum [w h n 1]."""
    exact = jnp.promote_types(q.dtype, jnp.float32)
    bias = bias.astype(exact)
    mask, kinds = _masks_of(c, len(q))

    def attend(window):
        *arrays, kind = window
        q, k, v = (a.swapaxes(0, 1) for a in arrays)
        scores = ((q * q.shape[-1] ** -0.5) @ k.mT).astype(exact) + bias
        if kind is not None:
            scores = scores + APART * mask[kind][None].astype(exact)
        out, log_sum = _softmax_product(scores, v)
        return out.swapaxes(0, 1), log_sum

    return jax.lax.map(attend, (q, k, v, kinds))


def window_by_window_gradient(c, q, k, v, bias, out, log_sum, gradient):
    """The gradients of `window_by_window`'s first result for q, k, v and bias."""
    exact = jnp.promote_types(q.dtype, jnp.float32)
    scale = q.shape[-1] ** -0.5
    # With keys in the rows of the scores only one of the five products has to be transposed.
    transposed_bias = bias.mT.astype(exact)
    mask, kinds = _masks_of(c, len(q))

    def add_window(d_bias, window):
        *arrays, log_sum, kind = window
        q, k, v, out, g = (a.swapaxes(0, 1) for a in arrays)
        scores = (k @ (q * scale).mT).astype(exact) + transposed_bias
        if kind is not None:
            scores = scores + APART * mask[kind][None].astype(exact)
        weights = jnp.exp(scores - log_sum.mT)
        inner = jnp.sum((g * out).astype(exact), axis=-1, keepdims=True)
        d_scores = weights * ((v @ g.mT).astype(exact) - inner.mT)
        d = d_scores.astype(q.dtype)
        d_qkv = ((d.mT @ k) * scale, (d @ q) * scale, weights.astype(v.dtype) @ g)
        return d_bias + d_scores, tuple(a.swapaxes(0, 1) for a in d_qkv)

    d_bias, d_qkv = jax.lax.scan(add_window, jnp.zeros_like(transposed_bias), (q, k, v, out, gradient, log_sum, kinds))
    return (*d_qkv, d_bias.mT.astype(bias.dtype))


def _masks_of(c: WindowGrid, windows: int):
    """The distinct masks and the mask index of each of a batch's windows; None without a shift."""
    if not any(c.shift):
        return None, None
    mask, kinds = masks(c)
    return jnp.asarray(mask), jnp.asarray(np.tile(kinds, windows // len(kinds)))
