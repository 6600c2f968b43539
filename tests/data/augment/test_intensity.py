"""Intensities: against SciPy and numbers known in advance; within limits, in [0, 1], each sample's own; nothing at limits of zero."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.interpolate import BPoly

from brainseg_jax.data.augment import intensity as changes
from brainseg_jax.data.augment.intensity import along_curve, gaussian, intensity, slices


@pytest.fixture
def image(rng):
    return jnp.asarray(rng.random((3, 12, 10, 8, 2), np.float32))


def lines(n, scale, shift, chance, key=0):
    """Factor and offset that each of n samples got, read off the images of 0 and 1."""
    image = jnp.stack([jnp.zeros((n, 1, 1, 1)), jnp.ones((n, 1, 1, 1))], axis=1)
    out = np.asarray(jax.jit(intensity, static_argnums=(2, 3, 4))(jax.random.key(key), image, scale, shift, chance)).reshape(n, 2)
    return out[:, 1] - out[:, 0], out[:, 0]


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


def change(name, *limits):
    """A change of a batch, of each sample by its own key, compiled."""
    one = getattr(changes, name)
    return jax.jit(lambda key, images: jax.vmap(lambda k, image: one(k, image, *limits))(jax.random.split(key, len(images)), images))


# What each does at limits of zero is nothing; thick slices begin at one voxel.
NOTHING = {
    "gamma": (0.0,),
    "curve": (0.0,),
    "bias": (0.0, 5.0),
    "blur": (0.0,),
    "gaussian_noise": (0.0,),
    "rician_noise": (0.0,),
    "low_resolution": (1.0,),
}
MUCH = {
    "gamma": (2.0,),
    "curve": (1.0,),
    "bias": (1.0, 5.0),
    "blur": (2.0,),
    "gaussian_noise": (0.5,),
    "rician_noise": (0.5,),
    "low_resolution": (4.0,),
}


@pytest.mark.parametrize("name", NOTHING)
def test_limits_of_zero_change_nothing_to_the_bit(image, name):
    np.testing.assert_array_equal(change(name, *NOTHING[name])(jax.random.key(0), image), image)


@pytest.mark.parametrize("name", MUCH)
def test_values_stay_between_0_and_1_and_each_sample_gets_its_own(image, name):
    same = jnp.tile(image[:1], (4, 1, 1, 1, 1)).at[:, :2].set(0).at[:, 2:4].set(1)
    much = change(name, *MUCH[name])
    out = np.asarray(much(jax.random.key(0), same))
    assert out.shape == same.shape and out.min() >= 0 and out.max() <= 1 + 1e-6 and np.isfinite(out).all()
    assert len({sample.tobytes() for sample in out}) == 4
    np.testing.assert_array_equal(out, much(jax.random.key(0), same))
    assert not np.array_equal(out, much(jax.random.key(1), same))


def test_gamma_is_a_power_within_its_limits():
    image = jnp.tile(jnp.array([0, 0.25, 0.5, 1.0]).reshape(1, 4, 1, 1, 1), (500, 1, 1, 1, 1))
    out = np.asarray(change("gamma", 1.0)(jax.random.key(0), image)).reshape(500, 4)
    power = np.log2(out[:, 2]) / -1
    np.testing.assert_allclose(out[:, 1], 0.25**power, rtol=1e-5)
    assert (out[:, 0] == 0).all() and (out[:, 3] == 1).all()
    assert 0.5 <= power.min() < 0.52 and 1.95 < power.max() <= 2.00001 and abs(np.median(power) - 1) < 0.1


def test_a_curve_is_scipys_bernstein_polynomial(x64, rng):
    rises, image = rng.random((2, 5, 2)), rng.random((2, 7, 3, 3, 2))
    out = jax.jit(jax.vmap(along_curve))(jnp.asarray(image), jnp.asarray(rises))
    for i in range(2):
        for c in range(2):
            heights = np.concatenate([[0], np.cumsum(rises[i, :, c])]) / rises[i, :, c].sum()
            np.testing.assert_allclose(out[i, ..., c], BPoly(heights[:, None], [0, 1])(image[i, ..., c]), atol=1e-12)


def test_curves_known_by_hand():
    """All of the rise in the last part: x⁵; in the first: 1 − (1 − x)⁵."""
    x = jnp.linspace(0, 1, 11).reshape(11, 1, 1, 1)
    late, early = (jax.jit(along_curve)(x, jnp.zeros((5, 1)).at[i].set(1.0)).ravel() for i in (4, 0))
    np.testing.assert_allclose(late, np.linspace(0, 1, 11) ** 5, atol=1e-6)
    np.testing.assert_allclose(early, 1 - (1 - np.linspace(0, 1, 11)) ** 5, atol=1e-6)


def test_curves_rise():
    x = jnp.broadcast_to(jnp.linspace(0, 1, 200)[None, :, None, None, None], (300, 200, 1, 1, 1))
    out = np.asarray(change("curve", 1.0)(jax.random.key(0), x)).reshape(300, 200)
    assert np.diff(out, axis=1).min() > -1e-6 and (out[:, 0] == 0).all() and (out[:, -1] > 1 - 1e-6).all()
    assert 0.07 < np.abs(out - np.linspace(0, 1, 200)).max(1).mean() < 0.3


def test_bias_is_a_smooth_factor_within_its_limit():
    image = jnp.full((20, 24, 24, 24, 1), 0.2)
    log = np.log(np.asarray(change("bias", 0.8, 12.0)(jax.random.key(0), image)) / 0.2)
    assert 0.3 < np.abs(log).max() < 0.8 and np.abs(np.diff(log, axis=1)).max() < 0.8 * 1.5 / 12
    assert abs(log.mean()) < 0.05 and 0.5 < log.std() / (0.8 * 0.2) < 1.5
    twice = np.asarray(change("bias", 0.8, 12.0)(jax.random.key(0), 2 * image)) / 0.4
    np.testing.assert_allclose(twice, np.exp(log), rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_blur_is_scipys_gaussian_over_the_voxels_there_are(x64, rng, sigma):
    volume = rng.random((20, 3))
    matrix = np.asarray(jax.jit(jax.vmap(partial(gaussian, 20)))(jnp.array([sigma, 0.0])))
    smooth = partial(ndimage.gaussian_filter1d, sigma=sigma, axis=0, mode="constant", truncate=12)
    np.testing.assert_allclose(matrix[0] @ volume, smooth(volume) / smooth(np.ones((20, 1))), atol=1e-10)
    np.testing.assert_array_equal(matrix[1], np.eye(20))


def test_each_axis_has_its_own_blur_up_to_the_limit():
    point = jnp.zeros((200, 25, 25, 25, 1)).at[:, 12, 12, 12].set(1)
    out = np.asarray(change("blur", 2.0)(jax.random.key(0), point))[..., 0]
    np.testing.assert_allclose(out.sum((1, 2, 3)), 1, atol=1e-4)
    spread = [np.sqrt(out.sum(tuple(1 + j for j in range(3) if j != k)) @ (np.arange(25) - 12.0) ** 2) for k in range(3)]
    assert all(1.9 < s.max() <= 2.001 and s.min() < 0.2 for s in spread)
    assert np.abs(np.corrcoef(spread) - np.eye(3)).max() < 0.3


def test_gaussian_noise_has_its_spread():
    image = jnp.full((100, 16, 16, 16, 1), 0.5)
    noise = np.asarray(change("gaussian_noise", 0.1)(jax.random.key(0), image))[..., 0] - 0.5
    spread = noise.std((1, 2, 3))
    assert 0.09 < spread.max() < 0.103 and spread.min() < 0.01 and abs(spread.mean() - 0.05) < 0.01
    assert (np.abs(noise.mean((1, 2, 3))) < 5 * spread / 64 + 1e-7).all()
    most = noise[np.argmax(spread)]
    assert abs(np.corrcoef(most[1:].ravel(), most[:-1].ravel())[0, 1]) < 0.08
    assert abs(np.mean(np.abs(most)) / most.std() - np.sqrt(2 / np.pi)) < 0.02


def test_rician_noise_of_nothing_is_rayleighs_and_far_from_it_gaussian():
    dark, light = (np.asarray(change("rician_noise", 0.1)(jax.random.key(0), jnp.full((100, 16, 16, 16, 1), v))) for v in (0.0, 0.6))
    square = (dark.astype(np.float64) ** 2).mean((1, 2, 3, 4))
    np.testing.assert_allclose(dark.mean((1, 2, 3, 4), dtype=np.float64) ** 2 / square, np.pi / 4, rtol=0.05)
    sigma = np.sqrt(square / 2)
    assert 0.09 < sigma.max() < 0.103
    np.testing.assert_allclose(light.std((1, 2, 3, 4), dtype=np.float64), sigma, rtol=0.08)


def thick(values, thickness, first):
    """Slices as their definition has it: means by the integral of voxels that are constant over their width, then np.interp."""
    n = len(values)
    centres = first + thickness * np.arange(int(np.rint((n - 1 - first) / thickness)) + 1)
    edges, integral = np.arange(n + 1) - 0.5, np.concatenate([[0], np.cumsum(values)])
    low, high = (np.clip(centres + side * thickness / 2, -0.5, n - 0.5) for side in (-1, 1))
    means = (np.interp(high, edges, integral) - np.interp(low, edges, integral)) / (high - low)
    return np.interp(np.arange(n), centres, means)


@pytest.mark.parametrize(("thickness", "first"), [(1.0, 0.0), (2.0, 0.5), (2.0, -0.5), (3.0, 0.0), (3.7, 1.1), (5.2, -2.1), (40.0, 3.0)])
def test_thick_slices_are_means_interpolated_back(x64, rng, thickness, first):
    values = rng.random(17)
    matrix = np.asarray(jax.jit(slices, static_argnums=0)(17, jnp.array(thickness), jnp.array(first)))
    np.testing.assert_allclose(matrix @ values, thick(values, thickness, first), atol=1e-12)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)


def test_thick_slices_by_hand():
    """Slices of two voxels of 0 2 4 6 are 1 and 5, at 0.5 and 2.5."""
    matrix = np.asarray(jax.jit(slices, static_argnums=0)(4, jnp.array(2.0), jnp.array(0.5)))
    np.testing.assert_allclose(matrix @ [0, 2, 4, 6], [1, 2, 4, 5], atol=1e-6)


def test_slices_are_thick_along_one_axis_or_all():
    """Along an axis whose voxels stay thin, an image that alternates along it stays as it is."""
    n = 12
    wave = (np.indices((n, n, n)) % 2).astype(np.float32)  # one for each axis
    image = jnp.asarray(np.tile(np.moveaxis(wave, 0, -1)[None], (400, 1, 1, 1, 1)))
    coarser = change("low_resolution", 4.0)
    out = np.concatenate([np.asarray(coarser(jax.random.key(0), image[..., i : i + 1])) for i in range(3)], axis=-1)
    coarse = np.abs(out - np.asarray(image)).max((1, 2, 3)) > 1e-3
    how_many = np.bincount(coarse.sum(1), minlength=4)
    assert how_many[0] <= 2 and how_many[2] <= 4 and abs(how_many[1] - 200) < 50
    assert (np.abs(coarse[coarse.sum(1) == 1].mean(0) - 1 / 3) < 0.12).all()


@pytest.mark.parametrize("name", MUCH)
def test_channels_are_changed_each_by_itself(name):
    """Two that are alike no longer are."""
    image = jnp.asarray(np.random.default_rng(3).random((20, 12, 10, 8, 1), np.float32))
    out = np.asarray(change(name, *MUCH[name])(jax.random.key(1), jnp.repeat(image, 2, axis=-1)))
    differ = np.abs(out[..., 0] - out[..., 1]).max((1, 2, 3)) > 1e-4
    assert differ.sum() >= 18 and out.min() >= 0 and out.max() <= 1


def test_scale_and_shift_are_each_channels_own():
    image = jnp.ones((50, 1, 1, 1, 2))
    out = np.asarray(jax.jit(intensity, static_argnums=(2, 3, 4))(jax.random.key(0), image, 0.1, 0.1, 1.0)).reshape(50, 2)
    assert (np.abs(out[:, 0] - out[:, 1]) > 1e-6).all() and abs(np.corrcoef(out.T)[0, 1]) < 0.5
