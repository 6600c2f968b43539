"""Where labels say nothing of a head, its intensities do: classes outside the brain, so that scans of it can be made in other contrasts."""

import numpy as np
from jaxtyping import Float, Integer
from scipy import ndimage

from brainseg_jax.data.labels import Table

BRIGHTNESS = range(601, 607)  # ids of the table "head", darkest first
AIR = 0.08  # standardised intensity below which a voxel is air, or bone
SAMPLE, ROUNDS = 50_000, 20


def with_intensities(
    classes: Integer[np.ndarray, "x y z"], image: Float[np.ndarray, "x y z"] | Integer[np.ndarray, "x y z"], table: Table
) -> Integer[np.ndarray, "x y z"]:
    """Classes of "head" with those of BRIGHTNESS for what they leave out of the head: k-means of the standardised image there.

    What is as dark as air and inside the head, bone and sinuses, is the first of them; the rest are clusters of what is brighter.
    """
    values = image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)
    bright = ndimage.binary_opening((values > AIR) | (classes > 0))
    parts, count = ndimage.label(bright)
    if not count:
        return classes
    head = ndimage.binary_fill_holes(parts == np.bincount(parts.ravel())[1:].argmax() + 1)
    number = {s.id: n for n, s in enumerate(table.structures, 1)}
    left = head & (classes == 0)
    lit = left & (values > AIR)
    found = classes.copy()
    found[left] = number[BRIGHTNESS[0]]
    if lit.any():
        numbers = np.array([number[id] for id in BRIGHTNESS[1:]], classes.dtype)
        found[lit] = numbers[np.searchsorted(_borders(values[lit], len(numbers)), values[lit])]
    return found


def _borders(values: Float[np.ndarray, "n"], k: int) -> Float[np.ndarray, "m"]:
    """What separates k clusters of numbers (Lloyd's algorithm, from quantiles on, so that equal values give equal clusters)."""
    sample = np.sort(values)[:: max(1, len(values) // SAMPLE)]
    centres = np.quantile(sample, (np.arange(k) + 0.5) / k)
    for _ in range(ROUNDS):
        which = np.searchsorted((centres[1:] + centres[:-1]) / 2, sample)
        counts = np.bincount(which, minlength=k)
        centres = np.where(counts, np.bincount(which, sample, k) / np.maximum(counts, 1), centres)
    return ((centres[1:] + centres[:-1]) / 2).astype(np.float32)
