"""Segmentation metrics by class: Dice, volumes, and surface distances (HD95, ASSD, and the normalised surface Dice of Nikolov et al. 2018,
counted in voxels). Equal to MONAI's where a structure is on both sides.

Public tools differ by over 100 mm on the same masks (arXiv 2410.02630), so every table comes with `definitions`. A structure that one side
lacks is not dropped: Dice and NSD are 0 and distances are the image's diagonal, where MONAI has NaN (MONAI#9095).
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer
from scipy import ndimage
from scipy.spatial import KDTree

METRICS = ("dice", "hd95", "assd", "nsd")
ROUNDING = 1e-4  # mm; headers have 1.0000001 for 1, and a shift by one voxel must be within 1 mm

ClassMap = Integer[np.ndarray, "x y z"]
PerClass = Float64[np.ndarray, "k"]
Mask = Bool[np.ndarray, "x y z"]
Distances = Float64[np.ndarray, "_"]
Spacing = tuple[float, float, float]  # mm along each axis


def definitions(metrics: Sequence[str] = METRICS, tolerance: float = 1.0) -> list[str]:
    """The definitions of the given METRICS in words, a line each."""
    words = {
        "dice": "2 |P ∩ R| / (|P| + |R|), the voxels of prediction P and reference R",
        "hd95": "the larger of both directions' 95th percentiles (interpolated linearly) of surface distances, in mm",
        "assd": "the mean of the surface distances of both directions together, in mm",
        "nsd": f"the share of both surfaces' voxels that are at most {tolerance:g} mm from the other surface",
    }
    lines = [f"{name}: {words[name]}" for name in metrics]
    if set(metrics) - {"dice"}:
        lines += [
            "surface: the voxels of a structure with one of their six face neighbours outside it, or outside the image",
            "surface distance: from a voxel's centre to the nearest of the other surface; the background has none",
        ]
    return [*lines, "a structure absent on both sides is not counted; on one side: Dice and NSD 0, distances the image's diagonal"]


def score(
    prediction: ClassMap, reference: ClassMap, k: int, spacing: Spacing, metrics: Sequence[str] = METRICS, tolerance: float = 1.0
) -> dict[str, PerClass]:
    """`pred_ml`, `ref_ml` and each of `metrics` for classes 0 to k − 1 on one grid with `spacing` in mm; NaN means "not counted".

    Class 0, the background, has no distances. `tolerance`: of NSD, in mm.
    """
    counts = confusion(prediction, reference, k)
    pred_ml, ref_ml = volumes(counts, spacing)
    scores = {"pred_ml": pred_ml, "ref_ml": ref_ml} | {name: np.full(k, np.nan) for name in metrics}
    if "dice" in metrics:
        scores["dice"] = dice(counts)
    if not set(metrics) - {"dice"}:
        return scores
    diagonal = float(np.linalg.norm((np.array(reference.shape) - 1) * np.array(spacing)))
    boxes = zip(ndimage.find_objects(prediction, k - 1), ndimage.find_objects(reference, k - 1), strict=True)
    for label, both in enumerate(boxes, start=1):
        if both == (None, None):
            continue
        box = tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*filter(None, both), strict=True))
        there, back = surface_distances(prediction[box] == label, reference[box] == label, spacing, diagonal)
        measured = {"hd95": hd95(there, back), "assd": assd(there, back), "nsd": nsd(there, back, tolerance)}
        for name in measured.keys() & set(metrics):
            scores[name][label] = measured[name]
    return scores


def confusion(prediction: ClassMap, reference: ClassMap, k: int) -> Int64[np.ndarray, "k k"]:
    """The confusion matrix: voxels of class i in the prediction and j in the reference; all that Dice and volumes need."""
    for labels in (prediction, reference):
        if labels.min() < 0 or labels.max() >= k:
            raise ValueError(f"classes {labels.min()} to {labels.max()} where 0 to {k - 1} are expected")
    pairs = prediction.ravel().astype(np.intp) * k + reference.ravel()
    return np.bincount(pairs, minlength=k * k).reshape(k, k)


def dice(counts: Int64[np.ndarray, "k k"]) -> PerClass:
    """The Dice coefficient 2 |P ∩ R| / (|P| + |R|) of each class, from `confusion`; NaN where both are empty."""
    sizes = counts.sum(axis=0) + counts.sum(axis=1)
    return np.where(sizes > 0, 2 * np.diag(counts) / np.maximum(sizes, 1), np.nan)


def volumes(counts: Int64[np.ndarray, "k k"], spacing: Spacing) -> tuple[PerClass, PerClass]:
    """The volumes of each class in the prediction and in the reference, in ml, from `confusion`; `spacing` in mm."""
    ml = math.prod(spacing) / 1000
    return counts.sum(axis=1) * ml, counts.sum(axis=0) * ml


def surface_distances(prediction: Mask, reference: Mask, spacing: Spacing, absent: float) -> tuple[Distances, Distances]:
    """Distances in mm from each surface voxel of the prediction to the nearest of the reference, and vice versa, between centres.

    If the other side is empty the distance is `absent`. Voxels beyond the array are outside the mask.
    """
    # A k-d tree of surface voxels: as exact as a distance transform, twice as fast on a brain's 33 structures.
    points = [np.argwhere(surface(mask)) * np.array(spacing) for mask in (prediction, reference)]

    def nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
        if not len(points) or not len(others):
            return np.full(len(points), absent)
        return KDTree(others, balanced_tree=False, compact_nodes=False).query(points)[0]

    return nearest(*points), nearest(*points[::-1])


def surface(mask: Mask) -> Mask:
    """The voxels of a mask with one of their six face neighbours outside it."""
    inner = mask.copy()
    for axis in range(3):
        m, i = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        i[1:] &= m[:-1]
        i[:-1] &= m[1:]
        i[[0, -1]] = False
    return mask & ~inner


def hd95(there: Distances, back: Distances) -> float:
    """The larger of the two directed 95th percentiles of surface distances, in mm; at least one side has a surface."""
    return float(max(np.percentile(distances, 95) for distances in (there, back) if distances.size))


def assd(there: Distances, back: Distances) -> float:
    """The mean of the surface distances of both directions together, in mm."""
    return float(np.concatenate([there, back]).mean())


def nsd(there: Distances, back: Distances, tolerance: float) -> float:
    """The share of both surfaces' voxels that are at most `tolerance` mm from the other surface."""
    return float((np.concatenate([there, back]) <= tolerance + ROUNDING).mean())
