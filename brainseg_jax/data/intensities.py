"""Stored values that are no intensities, NaN, infinities and outliers, are taken out of an image before anything is judged by it."""

from functools import reduce

import numpy as np
from jaxtyping import Bool, Float

from brainseg_jax.core.errors import InputError

EXTREMES = (0.1, 99.9)  # percentiles; beyond them, by more than the distance between them, lies no tissue
SAMPLED = 100  # voxels along an axis that percentiles are taken from, at least
MOST = 0.98  # share of voxels that may be NaN, as around a brain that was cut out with it
SAID = 1e-3  # share of voxels that are not finite from which on it is said
BLOCK = 3  # voxels: a cube of them that is not finite is said whatever its share, since it may be a piece of the brain


def cleaned(voxels: Float[np.ndarray, "x y z"]) -> tuple[Float[np.ndarray, "x y z"], tuple[str, ...]]:
    """The same array, changed in place, and what is to be said of it. Raises InputError where most are not finite, or all are equal.

    Outliers, such as one hot voxel, are clipped. What is not finite becomes the smallest value that is neither: the air's, where a 0 would
    be mid-grey in an image whose intensities were standardised.
    """
    finite = np.isfinite(voxels)
    share = 1 - np.count_nonzero(finite) / finite.size
    if share > MOST:
        raise InputError("most voxels are NaN or infinite; export the image again, with 0 as background")
    low, high = (float(end(voxels, where=finite, initial=start)) for end, start in ((np.min, np.inf), (np.max, -np.inf)))
    if low == high:
        raise InputError(f"the image is empty, every voxel is {low:g}; export it again or leave it out")
    every = tuple(slice(None, None, max(1, n // SAMPLED)) for n in voxels.shape)
    sample = voxels[every][finite[every]]
    if sample.size:
        first, last = float(np.percentile(sample, EXTREMES[0], method="higher")), float(np.percentile(sample, EXTREMES[1], method="lower"))
        bounds = np.float32([first - (last - first), last + (last - first)])
        if last > first and (low < bounds[0] or high > bounds[1]):
            low = float(np.min(voxels, where=finite & (voxels >= bounds[0]), initial=np.inf))
            np.clip(voxels, *bounds, out=voxels)
    voxels[~finite] = low
    if share <= SAID and not _holds_block(~finite):
        return voxels, ()
    return voxels, (f"{100 * share:.2g}% of its voxels are NaN or infinite and were given its smallest value, {low:.3g}",)


def _holds_block(marked: Bool[np.ndarray, "x y z"]) -> bool:
    """Whether all voxels of a cube somewhere are marked."""
    for _ in range(3):
        last = len(marked) - BLOCK + 1
        marked = np.moveaxis(reduce(np.logical_and, (marked[k : last + k] for k in range(BLOCK))), 0, -1)
    return bool(marked.any())
