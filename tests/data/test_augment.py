"""Augmentation: pure in (key, batch), within its limits, as often as said; none for held-out volumes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from brainseg_jax.data.augment import as_float, intensity, prepare_eval, prepare_train


def settings(**changes):
    return ConfigDict({"augment": {"scale": 0.1, "shift": 0.2, "chance": 0.5} | changes})


def lines(n, scale, shift, chance, key=0):
    """Factor and offset that each of n samples got, read off the images of 0 and 1."""
    image = jnp.stack([jnp.zeros((n, 1, 1, 1)), jnp.ones((n, 1, 1, 1))], axis=1)
    out = np.asarray(jax.jit(intensity, static_argnums=(2, 3, 4))(jax.random.key(key), image, scale, shift, chance)).reshape(n, 2)
    return out[:, 1] - out[:, 0], out[:, 0]


def test_stored_intensities_become_floats():
    np.testing.assert_allclose(as_float(jnp.array([0, 51, 255], jnp.uint8).reshape(1, 3, 1, 1, 1)).ravel(), [0, 0.2, 1], rtol=1e-6)
    half = as_float(jnp.array([0.25, 1.0], jnp.float16).reshape(1, 2, 1, 1, 1))
    assert half.dtype == jnp.float32 and half.ravel().tolist() == [0.25, 1.0]


def test_each_happens_by_its_own_chance_within_its_limits():
    """A fifth of 4000 samples: 800 ± 25; both at once: 160 ± 12."""
    factor, offset = lines(4000, 0.1, 0.3, 0.2)
    scaled, shifted = np.abs(factor - 1) > 1e-6, np.abs(offset) > 1e-6
    assert abs(scaled.sum() - 800) < 130 and abs(shifted.sum() - 800) < 130 and abs((scaled & shifted).sum() - 160) < 65
    assert 0.095 < np.abs(factor - 1).max() <= 0.1 + 1e-6 and 0.29 < np.abs(offset).max() <= 0.3
    assert abs((factor[scaled] - 1).mean()) < 0.01 and abs(offset[shifted].mean()) < 0.03
    assert abs(np.corrcoef(factor, offset)[0, 1]) < 0.1


def test_the_key_decides():
    (a, b), (again, and_b), (other, _) = lines(50, 0.1, 0.1, 1.0), lines(50, 0.1, 0.1, 1.0), lines(50, 0.1, 0.1, 1.0, key=1)
    np.testing.assert_array_equal(a, again)
    np.testing.assert_array_equal(b, and_b)
    assert not np.array_equal(a, other) and len(np.unique(a)) == 50


def test_chance_zero_is_off_and_held_out_batches_are_never_changed(rng):
    batch = {"image": jnp.asarray(rng.integers(0, 256, (2, 3, 3, 3, 1)), jnp.uint8), "weight": jnp.ones(2)}
    for prepare in (prepare_train(settings(chance=0.0)), prepare_eval):
        out = prepare(jax.random.key(0), batch)
        np.testing.assert_allclose(out["image"], np.asarray(batch["image"]) / 255, rtol=1e-6)
        assert out["weight"] is batch["weight"]


@pytest.mark.parametrize(("changes", "factor", "offset"), [({"scale": 0.0}, False, True), ({"shift": 0.0}, True, False)])
def test_limits_of_zero_turn_one_off(changes, factor, offset):
    image = jnp.tile(jnp.array([0, 255], jnp.uint8).reshape(1, 2, 1, 1, 1), (40, 1, 1, 1, 1))
    out = np.asarray(prepare_train(settings(chance=1.0, **changes))(jax.random.key(0), {"image": image})["image"]).reshape(40, 2)
    assert (np.ptp(out[:, 1] - out[:, 0]) > 0.01) == factor and (np.ptp(out[:, 0]) > 0.01) == offset
