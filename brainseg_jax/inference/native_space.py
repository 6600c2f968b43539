"""Linear resampling from a standardised grid to the scan's own voxels (native space)."""

from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from scipy import ndimage

from brainseg_jax.data.preprocess import Standardized, along_axis

ALONG = 0.05  # voxels by which axes may diverge from end to end and still count as parallel


class GridTransform(NamedTuple):
    """The transform from voxels of the scan to voxels of its standardised grid. `axes`: the grid's axis along each axis of the scan."""

    matrix: Float[np.ndarray, "4 4"]
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None


def grid_transform(ready: Standardized) -> GridTransform:
    """The transform of a standardised scan. `axes` is None if the scan's axes are not parallel to the grid's."""
    shape = tuple(ready.record["source_shape"])
    matrix = np.linalg.solve(ready.affine, ready.record["source_affine"])
    axes = np.abs(matrix[:3, :3]).argmax(axis=0)
    across = matrix[:3, :3].copy()
    across[axes, [0, 1, 2]] = 0
    along = sorted(axes) == [0, 1, 2] and (np.abs(across) @ shape).max() < ALONG
    return GridTransform(matrix, shape, tuple(axes.tolist()) if along else None)


def resample_to_native(
    soft: UInt8[np.ndarray, "x y z"], box: tuple[slice, ...], by: GridTransform
) -> tuple[tuple[slice, ...], Float[np.ndarray, "x2 y2 z2"]]:
    """The part of the scan's grid that `box` of the standardised grid affects, and the linearly interpolated values there."""
    crop = tuple(slice(max(b.start - 1, 0), b.stop + 1) for b in box)
    values, start = soft[crop].astype(np.float32), np.array([c.start for c in crop])
    if by.axes is None:
        corners = np.array([(*corner, 1) for corner in product(*((b.start - 1, b.stop) for b in box))])
        corners = (np.linalg.inv(by.matrix) @ corners.T)[:3]
        low = np.clip(np.floor(corners.min(axis=1)).astype(int), 0, by.shape)
        high = np.clip(np.ceil(corners.max(axis=1)).astype(int) + 1, low, by.shape)
        turn, first = by.matrix[:3, :3], by.matrix[:3, 3] - start
        values = ndimage.affine_transform(values, turn, turn @ low + first, tuple(high - low), order=1, mode="grid-constant")
        return tuple(map(slice, low, high)), values
    parts, places = [], []
    middle = by.matrix @ [*((np.array(by.shape) - 1) / 2), 1]
    for n, axis, step in zip(by.shape, by.axes, by.matrix[by.axes, [0, 1, 2]], strict=True):
        at = middle[axis] + step * (np.arange(n) - (n - 1) / 2)
        # Values are continued up to half a voxel beyond the window's outermost voxels.
        inside = (at > box[axis].start - 1) & (at < box[axis].stop) & (at >= -0.5) & (at <= soft.shape[axis] - 0.5)
        where = np.flatnonzero(inside)
        parts.append(slice(int(where[0]), int(where[-1]) + 1) if where.size else slice(0, 0))
        places.append(at[inside] - start[axis])
    values = values.transpose(by.axes)
    for axis in np.argsort([len(at) / n for at, n in zip(places, values.shape, strict=True)]):
        values = along_axis(values, places[axis], int(axis), order=1)
    return tuple(parts), values


def bounding_box(mask: Shaped[np.ndarray, "x y z"]) -> tuple[slice, ...] | None:
    """The smallest box around the voxels of a mask; None if it is empty."""
    return next(iter(ndimage.find_objects(mask.view(np.uint8))), None)
