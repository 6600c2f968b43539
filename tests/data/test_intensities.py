"""What is no intensity is taken out of an image; what is one stays to the bit."""

import numpy as np
import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data.intensities import cleaned


def image(rng, shape=(40, 50, 60)):
    return rng.normal(0, 1, shape).astype(np.float32)


def test_intensities_stay(rng):
    for voxels in (image(rng), np.exp(image(rng) / 2), np.where(image(rng) > 1, 5, 0).astype(np.float32)):
        after, remarks = cleaned(voxels.copy())
        np.testing.assert_array_equal(after, voxels)
        assert remarks == ()


@pytest.mark.parametrize(("count", "value"), [(1, 1e5), (100, 3e38), (1, -1e5), (50, -1e30)])
def test_outliers_are_clipped_wherever_they_lie(rng, count, value):
    voxels = image(rng)
    where = rng.choice(voxels.size, count, replace=False)
    hot = voxels.copy()
    hot.reshape(-1)[where] = value
    after, remarks = cleaned(hot)
    others = np.ones(voxels.size, bool)
    others[where] = False
    np.testing.assert_array_equal(after.reshape(-1)[others], voxels.reshape(-1)[others])
    assert abs(after).max() < 15 and remarks == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spike", [0, -1e6])
def test_what_is_not_finite_becomes_air(rng, value, spike):
    """Where 0 is the mean, as in standardised intensities, 0 is mid-grey; nor is an outlier the air."""
    voxels = image(rng)
    lowest = voxels[:, 10:].min()
    voxels[:, :10] = value
    voxels[0, 20, 0] = spike
    after, (remark,) = cleaned(voxels)
    assert (after[:, :10] == lowest).all() and np.isfinite(after).all()
    assert remark.startswith("20% of its voxels are NaN or infinite")


def test_a_few_that_are_not_finite_are_not_worth_a_word(rng):
    voxels = image(rng)
    voxels[0, 0, :60] = np.nan
    assert cleaned(voxels)[1] == ()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_block_that_is_not_finite_is_said_however_small_its_share(rng, value):
    """Of a head of 256³ voxels a lost piece of the brain is a ten-thousandth."""
    voxels = image(rng)
    voxels[20:23, 20:23, 20:23] = value
    (remark,) = cleaned(voxels)[1]
    assert remark.startswith("0.023% of its voxels are NaN or infinite and were given its smallest value")
    loose = image(rng)
    loose[20:23, 20:23, 20:22] = loose[::10, ::10, ::20] = value
    assert cleaned(loose)[1] == ()


def test_of_an_image_that_is_thinner_than_a_block_nothing_is_said_for_one(rng):
    for thin in ((1, 50, 60), (50, 2, 60), (50, 60, 1)):
        voxels = image(rng, thin)
        voxels[0, 0, 0] = np.nan
        assert cleaned(voxels)[1] == ()


@pytest.mark.parametrize(("share", "value", "words"), [(0.99, np.nan, "most voxels"), (1, np.inf, "most voxels"), (1, 7, "voxel is 7")])
def test_without_content_it_is_refused(rng, share, value, words):
    voxels = image(rng)
    voxels.reshape(-1)[: int(share * voxels.size)] = value
    with pytest.raises(InputError, match=words):
        cleaned(voxels)
