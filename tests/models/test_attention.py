"""Attention: the form for a CPU is the form for a GPU is the formula; and the platform that is compiled for picks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax.models.attention import attend

DTYPES = ("float64", "float32", "bfloat16")


def formula(q, k, v):
    """softmax(q kᵀ / √e) v, one sample and one head after the other."""
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h] @ k[b, :, h].T / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[b, :, h] = weights / weights.sum(1, keepdims=True) @ v[b, :, h]
    return out


def draws(rng, dtype, tokens=7):
    """q [b n h e], and k, v of another number of tokens, all rounded to `dtype`; and a cotangent."""
    shapes = ((2, tokens, 3, 4), (2, 5, 3, 4), (2, 5, 3, 4), (2, tokens, 3, 4))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_the_formula(x64, rng, close, dtype):
    q, k, v, _ = draws(rng, dtype)
    out = jax.jit(attend)(q, k, v)
    assert out.dtype == jnp.dtype(dtype)
    close(out, formula(*(np.asarray(a, np.float64) for a in (q, k, v))), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_the_formulas(x64, rng, close, dtype):
    *inputs, g = draws(rng, dtype)
    ours = jax.jit(lambda *inputs: jax.vjp(attend, *inputs)[1](g))(*inputs)

    def written_out(q, k, v):
        return jnp.einsum("bhnm,bmhe->bnhe", jax.nn.softmax(jnp.einsum("bnhe,bmhe->bhnm", q, k) / 2, axis=-1), v)

    theirs = jax.vjp(written_out, *(a.astype("float64") for a in inputs))[1](g.astype("float64"))
    assert [a.dtype for a in ours] == [jnp.dtype(dtype)] * 3
    close(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_values_and_gradients_are_those_of_jax(rng, close, dtype):
    """What runs on a GPU. In double precision JAX's own is exact to float32 only."""
    *inputs, g = draws(rng, dtype)
    run = lambda f: jax.jit(lambda *inputs: (f(*inputs), jax.vjp(f, *inputs)[1](g)))(*inputs)  # noqa: E731
    close(run(attend), run(jax.nn.dot_product_attention), dtype)


def test_gradients_are_the_slopes(x64, rng):
    """Central differences of the formula itself: independent of every automatic gradient."""
    q, k, v, g = (np.asarray(a) for a in draws(rng, "float64", tokens=3))
    slopes = jax.grad(lambda *inputs: jnp.sum(attend(*inputs) * g), argnums=(0, 1, 2))(*map(jnp.asarray, (q, k, v)))
    for i in range(3):
        step = rng.normal(size=(q, k, v)[i].shape) * 1e-6
        up, down = ([a + sign * step if j == i else a for j, a in enumerate((q, k, v))] for sign in (1, -1))
        change = np.sum((formula(*up) - formula(*down)) * g) / 2
        assert float(jnp.sum(slopes[i] * step)) == pytest.approx(change, rel=1e-5)


def test_large_scores_stay_finite(rng):
    q, k, v, g = draws(rng, "float32")
    out, pull = jax.vjp(attend, q * 1e3, k * 1e3, v)
    assert np.isfinite(out).all() and all(np.isfinite(a).all() for a in pull(g))


@pytest.mark.parametrize("what", ["forward", "gradient"])
def test_platform_compiled_for_picks_the_form(rng, what):
    q, k, v, _ = draws(rng, "float32")
    f = attend if what == "forward" else jax.grad(lambda *inputs: jnp.sum(attend(*inputs)), argnums=(0, 1, 2))
    traced = jax.jit(f).trace(q, k, v)
    assert "stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.while" not in traced.lower(lowering_platforms=("cuda",)).as_text()
