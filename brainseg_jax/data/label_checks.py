"""Plausibility checks of label maps with valid values: orientation against the image, labels on air, swapped sides, interpolation.

The thresholds were measured on label maps of 141 subjects at 2 mm (DLMUSE), 14 at 1 mm (FreeSurfer's ids) and the sample cohort, and on
these reoriented and interpolated; docstrings give the values of both. Findings are warnings, not errors.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
from jaxtyping import Float, Float32, Integer
from scipy import ndimage

from brainseg_jax.data.labels import LAST, Table

AIR = 0.25  # share of labelled voxels on air for a warning
TURNED = 1.03  # ratio by which reoriented labels have to fit the image better for a warning
TELLING = 0.25  # share of the intensity variance below which labels do not indicate orientation: a whole brain's explain 0.3 to 0.6
BETWEEN = 0.15  # share of a map's border voxels between a smaller and a larger id for a warning
FEWEST = 20  # minimum voxels of a structure to be checked
COARSE = 60**3  # voxels for the check of the fit
ENDS = ("left–right", "back–front", "feet–head")


def check_label_map(
    labels: Integer[np.ndarray, "x y z"], image: Float32[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"], table: Table
) -> list[str]:
    """Warnings about a label map on its image's grid, each a clause "fault; remedy"."""
    if not labels.any():
        return []
    labels = np.clip(labels, 0, LAST).astype(np.uint16)
    (box,) = ndimage.find_objects((labels > 0).view(np.uint8))
    doubts = [sides(labels[box], affine, table), interpolated(labels[box]), orientation_warning(labels, image, affine)]
    if all(structure.freesurfer for structure in table.structures):  # other structures, such as air itself, may lie on air
        doubts.append(on_air(labels, image))
    return [doubt for doubt in doubts if doubt]


def sides(labels: Integer[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"], table: Table) -> str:
    """A warning if more than half of the pairs have their "Left …" right of its partner. In good maps hardly any has."""
    n, right = np.bincount(labels.ravel()), np.zeros(1)
    for axis, step in enumerate(affine[0, :3]):
        along = np.arange(labels.shape[axis]).reshape([-1 if k == axis else 1 for k in range(3)])
        total = np.bincount(labels.ravel(), np.broadcast_to(along, labels.shape).ravel())
        right = right + step * total / np.maximum(n, 1)
    seen = {s.id: s.name for s in table.structures if s.id < len(n) and n[s.id] >= FEWEST}
    pairs = [(s.id, s.partner) for s in table.structures if s.name.startswith("Left") and {s.id, s.partner} <= seen.keys()]
    crossed = [(left, other) for left, other in pairs if right[left] > right[other]]
    if 2 * len(crossed) <= len(pairs):
        return ""
    left, other = crossed[0]
    where = f"{seen[left]} lies right of {seen[other]}" + f", and so {len(crossed)} of {len(pairs)} pairs" * (len(pairs) > 1)
    return f"left and right are exchanged: {where}; export the labels again, or correct their header"


def interpolated(labels: Integer[np.ndarray, "x y z"]) -> str:
    """A warning if labels look resampled linearly: shells, one voxel thick, with an id between those of their neighbours.

    1 to 10 % of border voxels are such in good maps of 1 to 3 mm, 23 to 70 % in interpolated ones. In a good map at most one structure, of
    30 voxels, consists of such voxels only; if few structures are interpolated several do.
    """
    ids = np.pad(labels, 1)
    inner = ids[1:-1, 1:-1, 1:-1]
    between, border = np.zeros(inner.shape, bool), np.zeros(inner.shape, bool)
    for axis in range(3):
        spans = [[slice(first, first + n) if k == axis else slice(1, -1) for k, n in enumerate(inner.shape)] for first in (0, 2)]
        before, after = (ids[tuple(span)] for span in spans)
        between |= (np.minimum(before, after) < inner) & (inner < np.maximum(before, after))
        border |= (before != inner) | (after != inner)
    between &= inner > 0
    share = between.sum() / max(1, (border & (inner > 0)).sum())
    n, shells = np.bincount(inner.ravel()), np.bincount(inner[between], minlength=1)
    bare = [id for id in np.flatnonzero(n >= FEWEST) if id and id < len(shells) and shells[id] > 0.9 * n[id]]
    if share < BETWEEN and len(bare) < max(3, np.count_nonzero(n[1:]) / 10):
        return ""
    named = f", of {', '.join(map(str, bare[:5]))}{' …' * (len(bare) > 5)} nearly all of their voxels" * bool(bare)
    return (
        f"{100 * share:.0f} % of its voxels at borders are one voxel thick between a smaller and a larger id{named}, as linear "
        "interpolation makes them; resample labels by nearest neighbour only"
    )


def orientation_warning(labels: Integer[np.ndarray, "x y z"], image: Float32[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> str:
    """A warning if the labels fit the image better after a flip or an exchange of axes: if they explain more of its intensity variance.

    Reoriented good maps explain at most 0.96 of what they do otherwise, masks of a whole brain, which is symmetric, 0.994. Labels of a part
    of the brain, the cortex or a lesion, may explain as much by chance, and cause no warning.
    """
    step = max(1, round((image.size / COARSE) ** (1 / 3)))
    coarse = (slice(None, None, step),) * 3
    grey = np.clip(image[coarse], *np.percentile(image[coarse], (1, 99))).ravel()
    as_is, *fits = [(_explained(turned[coarse].ravel(), grey), how) for turned, how in _turns(labels, affine)]
    best = max(fits, key=lambda fit: round(fit[0], 2))  # the simplest of equal ones
    if best[0] <= TURNED * as_is[0] or best[0] < TELLING:
        return ""
    lie = f"{100 * as_is[0]:.0f} % of the image's grey values, and {100 * best[0]:.0f} % {best[1]}"
    return f"its structures explain {lie}: it may be turned under its image's header; export it again with its own"


def on_air(labels: Integer[np.ndarray, "x y z"], image: Float32[np.ndarray, "x y z"]) -> str:
    """A warning if many labelled voxels are as dark as air (below a tenth of the way from the 2nd to the 98th percentile).

    In good maps at most 1.5 % are; up to 20 % if CSF around the brain is labelled and the skull-stripped image does not have it.
    """
    low, high = np.percentile(image, (2, 98))
    share = (image[labels > 0] < low + 0.1 * (high - low)).mean()
    return f"{100 * share:.0f} % of its labelled voxels lie on air; check that it is of this scan, and on its grid" * bool(share > AIR)


def _turns(labels: Integer[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> Iterator[tuple[np.ndarray, str]]:
    """The labels unchanged, flipped along axes, and with two axes of equal length exchanged; each with a description."""
    ends = [ENDS[k] for k in np.abs(affine[:3, :3]).argmax(0)]
    for flips in sorted(product((False, True), repeat=3), key=sum):
        axes = [axis for axis in range(3) if flips[axis]]
        yield np.flip(labels, axes), f"mirrored {' and '.join(ends[axis] for axis in axes)}"
    for i, j in ((0, 1), (0, 2), (1, 2)):
        if labels.shape[i] == labels.shape[j]:
            yield np.swapaxes(labels, i, j), f"with {ends[i]} and {ends[j]} exchanged"


def _explained(labels: Integer[np.ndarray, "n"], grey: Float[np.ndarray, "n"]) -> float:
    """The share of the intensity variance that lies between labels."""
    n, total = np.bincount(labels), np.bincount(labels, grey - grey.mean())
    return float((total**2 / np.maximum(n, 1)).sum() / max(grey.size * grey.var(), 1e-12))
