"""Maps along axes and smooth random fields: against einsum in one go and SciPy's splines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import BSpline

from brainseg_jax.data.augment.random_fields import along_axes, bspline, smooth_noise


def test_matrices_along_axes_are_one_sum_over_all(x64, rng, close):
    volume = rng.normal(size=(3, 4, 5, 2))
    x, y, z = rng.normal(size=(6, 3)), rng.normal(size=(7, 4)), rng.normal(size=(3, 5))
    out = jax.jit(along_axes)(jnp.asarray(volume), tuple(map(jnp.asarray, (x, y, z))))
    close(out, np.einsum("xyzc,ix,jy,kz->ijkc", volume, x, y, z), "float64")


@pytest.mark.parametrize(("n", "nodes"), [(20, 4), (21, 7.3), (5, 30.0), (9, 1.0)])
def test_the_basis_is_scipys(rng, n, nodes):
    basis = bspline(n, nodes)
    coefficients = rng.normal(size=basis.shape[1])
    knots = (np.arange(basis.shape[1] + 4) - 3) * nodes
    np.testing.assert_allclose(basis @ coefficients, BSpline(knots, coefficients, 3)(np.arange(n)), atol=1e-12)
    np.testing.assert_allclose(basis.sum(1), 1, atol=1e-12)
    assert basis.min() >= 0


def test_smooth_noise_is_smooth_within_one_and_each_channels_own():
    field = np.asarray(jax.jit(lambda key: smooth_noise(key, jnp.zeros((24, 20, 16, 1)), 8.0, 80))(jax.random.key(0)))
    assert field.shape == (24, 20, 16, 80) and np.abs(field).max() < 1
    assert 0.15 < field.std() < 0.25 and abs(field.mean()) < 0.02
    assert np.abs(np.diff(field, axis=0)).max() < 2 / 8  # of a spline: that from one coefficient to the next at most
    alike = np.corrcoef(field.reshape(-1, 80).T) - np.eye(80)
    assert np.abs(alike).max() < 0.9 and np.abs(alike).mean() < 0.3


def test_the_key_decides():
    drawn = jax.jit(lambda key: smooth_noise(key, jnp.zeros((8, 8, 8, 1)), 4.0, 1))
    a, again, other = (drawn(jax.random.key(seed)) for seed in (0, 0, 1))
    assert bool((a == again).all()) and not bool((a == other).any())
