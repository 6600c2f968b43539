"""Classes for the unlabelled parts of a head, by clustering intensities, so that scans of other contrasts can be synthesised."""

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
    """Classes of the table "head", with those of BRIGHTNESS for unlabelled voxels of the head, by k-means of the standardised image.

    Voxels as dark as air (bone and sinuses) are the first of these; the others are clusters of brighter voxels.
    """
    values = image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)
    bright = ndimage.binary_opening((values > AIR) | (classes > 0))
    components, count = ndimage.label(bright)
    if not count:
        return classes
    head = ndimage.binary_fill_holes(components == np.bincount(components.ravel())[1:].argmax() + 1)
    number = {s.id: n for n, s in enumerate(table.structures, 1)}
    unlabelled = head & (classes == 0)
    brighter = unlabelled & (values > AIR)
    out = classes.copy()
    out[unlabelled] = number[BRIGHTNESS[0]]
    if brighter.any():
        numbers = np.array([number[id] for id in BRIGHTNESS[1:]], classes.dtype)
        out[brighter] = numbers[np.searchsorted(_borders(values[brighter], len(numbers)), values[brighter])]
    return out


def _borders(values: Float[np.ndarray, "n"], k: int) -> Float[np.ndarray, "m"]:
    """The thresholds between k clusters of numbers (Lloyd's algorithm, deterministic by starting from quantiles)."""
    sample = np.sort(values)[:: max(1, len(values) // SAMPLE)]
    centres = np.quantile(sample, (np.arange(k) + 0.5) / k)
    for _ in range(ROUNDS):
        cluster = np.searchsorted((centres[1:] + centres[:-1]) / 2, sample)
        counts = np.bincount(cluster, minlength=k)
        centres = np.where(counts, np.bincount(cluster, sample, k) / np.maximum(counts, 1), centres)
    return ((centres[1:] + centres[:-1]) / 2).astype(np.float32)
