"""Cleaning of intensities: NaN, infinities and outliers are replaced before an image is used."""

from functools import reduce

import numpy as np
from jaxtyping import Bool, Float

from brainseg_jax.core.errors import InputError

EXTREMES = (0.1, 99.9)  # percentiles; values farther from them than their difference are outliers
SAMPLED = 100  # minimum number of voxels along an axis for percentiles
MOST = 0.98  # maximum share of NaN voxels, as around a skull-stripped brain
SAID = 1e-3  # share of non-finite voxels above which there is a remark
BLOCK = 3  # side in voxels of a cube: one that is not finite causes a remark whatever its share, as it may be part of the brain


def cleaned(voxels: Float[np.ndarray, "x y z"]) -> tuple[Float[np.ndarray, "x y z"], tuple[str, ...]]:
    """The same array, cleaned in place, and remarks. Raises InputError if most voxels are not finite, or all are equal.

    Outliers, such as one hot voxel, are clipped. Non-finite values become the smallest other value, that of air: 0 would be mid-grey in an
    image with standardised intensities.
    """
    finite = np.isfinite(voxels)
    share = 1 - np.count_nonzero(finite) / finite.size
    if share > MOST:
        raise InputError("most voxels are NaN or infinite; export the image again, with 0 as background")
    low, high = (float(end(voxels, where=finite, initial=start)) for end, start in ((np.min, np.inf), (np.max, -np.inf)))
    if low == high:
        raise InputError(f"the image is empty, every voxel is {low:g}; export it again or leave it out")
    steps = tuple(slice(None, None, max(1, n // SAMPLED)) for n in voxels.shape)
    sample = voxels[steps][finite[steps]]
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
    """Whether a cube of BLOCK³ marked voxels exists."""
    for _ in range(3):
        last = len(marked) - BLOCK + 1
        marked = np.moveaxis(reduce(np.logical_and, (marked[k : last + k] for k in range(BLOCK))), 0, -1)
    return bool(marked.any())
