"""x"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def _head_by_head(q, k, v):
    def one(q, k, v):
        exact = jnp.promote_types(q.dtype, jnp.float32)
        scores = ((q * q.shape[-1] ** -0.5) @ k.T).astype(exact)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        return ((weights.astype(v.dtype) @ v) / total).astype(v.dtype), largest + jnp.log(total)

    return _over_heads(one, q, k, v)


def _head_by_head_gradient(q, k, v, out, log_sum, gradient):
    scale = q.shape[-1] ** -0.5
    exact = jnp.promote_types(q.dtype, jnp.float32)
    inner = jnp.sum((gradient * out).astype(exact), axis=-1, keepdims=True)

    def one(q, k, v, log_sum, inner, g):
        # Weights with the keys in rows: then only one of the five products has to be transposed.
        weights = jnp.exp((k @ (q * scale).T).astype(exact) - log_sum.T)
        d_scores = (weights * ((v @ g.T) - inner.T)).astype(q.dtype)
        return (d_scores.T @ k) * scale, (d_scores @ q) * scale, weights.astype(v.dtype) @ g

    return _over_heads(one, q, k, v, log_sum, inner, gradient)


def _over_heads(f: Callable, *arrays: jax.Array):
    """Maps f over samples and heads, one after the other: each call sees [n e] matrices."""
    b, _, h, _ = arrays[0].shape
    rows = tuple(a.transpose(0, 2, 1, 3).reshape(b * h, a.shape[1], a.shape[3]) for a in arrays)
    mapped = jax.lax.map(lambda row: f(*row), rows)
    return jax.tree.map(lambda a: a.reshape(b, h, *a.shape[1:]).transpose(0, 2, 1, 3), mapped)
