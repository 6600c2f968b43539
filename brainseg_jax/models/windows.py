"""Windows of a 3-D grid for Swin attention: padding, shift and partition, regions of shifted windows, and relative positions.

Values that depend on shapes only are NumPy constants, not computed on the device. As in MONAI, padded voxels are attended to."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

# Added to the scores between regions; as in MONAI not minus infinity.
APART = -100.0

Grid = Float[jax.Array, "b x y z c"]


class WindowGrid(NamedTuple):
    """A grid's partition into windows, per axis: the window's side, the shift, and the size after padding at the end."""

    side: tuple[int, int, int]
    shift: tuple[int, int, int]
    padded: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        """The number of tokens in a window."""
        return prod(self.side)


def window_grid(grid: tuple[int, int, int], window: int, shift: int) -> WindowGrid:
    """The partition of a grid: an axis no longer than a window is one window without shift; others are padded to multiples of it."""
    side = tuple(min(n, window) for n in grid)
    return WindowGrid(side, tuple(shift * (n > window) for n in grid), tuple(-(-n // s) * s for n, s in zip(grid, side, strict=True)))


def partition(x: Grid, c: WindowGrid) -> Float[jax.Array, "w n c"]:
    """The windows of the padded and shifted grid, row-major after the sample, with row-major tokens."""
    b, *grid, d = x.shape
    x = jnp.pad(x, ((0, 0), *((0, p - n) for p, n in zip(c.padded, grid, strict=True)), (0, 0)))
    if any(c.shift):
        x = jnp.roll(x, [-s for s in c.shift], axis=(1, 2, 3))
    (wx, wy, wz), (px, py, pz) = c.side, c.padded
    cells = x.reshape(b, px // wx, wx, py // wy, wy, pz // wz, wz, d)
    return cells.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, c.tokens, d)


def merge_windows(windows: Float[jax.Array, "w n c"], c: WindowGrid, grid: tuple[int, int, int]) -> Grid:
    """The grid from its windows, without shift and padding: the inverse of `partition`."""
    (wx, wy, wz), (px, py, pz) = c.side, c.padded
    cells = windows.reshape(-1, px // wx, py // wy, pz // wz, wx, wy, wz, windows.shape[-1])
    x = cells.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, px, py, pz, windows.shape[-1])
    if any(c.shift):
        x = jnp.roll(x, c.shift, axis=(1, 2, 3))
    return x[:, : grid[0], : grid[1], : grid[2]]


@lru_cache
def regions(c: WindowGrid) -> np.ndarray:
    """The region of the unshifted grid of each token [w n]: a shifted window has up to eight, which do not attend to each other."""
    axes = []
    for side, shift, size in zip(*c, strict=True):
        at = np.arange(size)
        axes.append(((at >= size - side).astype(np.int8) + (at >= size - shift)) * (shift > 0))
    (wx, wy, wz), (px, py, pz) = c.side, c.padded
    labels = 9 * axes[0][:, None, None] + 3 * axes[1][None, :, None] + axes[2][None, None, :]
    cells = labels.reshape(px // wx, wx, py // wy, wy, pz // wz, wz)
    return cells.transpose(0, 2, 4, 1, 3, 5).reshape(-1, c.tokens)


@lru_cache
def masks(c: WindowGrid) -> tuple[np.ndarray, np.ndarray]:
    """The distinct masks, 1 between tokens of two regions [m n n], and the mask index of each window [w]."""
    labels, kinds = np.unique(regions(c), axis=0, return_inverse=True)
    return (labels[:, :, None] != labels[:, None, :]).astype(np.int8), kinds.reshape(-1).astype(np.int32)


@lru_cache
def relative(window: int) -> np.ndarray:
    """The row of the bias table for each query and key of a full window [n n]: (Δx, Δy, Δz), each counted from 1 - window, row-major."""
    at = np.indices((window,) * 3).reshape(3, -1)
    x, y, z = at[:, :, None] - at[:, None, :] + window - 1
    side = 2 * window - 1
    return (x * side + y) * side + z
