"""Windows of a 3-D grid: how it is padded, shifted and cut, which tokens belong together, and where they lie to one another.

What depends on shapes only is a NumPy constant, never computed on the device. The numbers are MONAI's: padded voxels are attended to."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

# Added to the scores between regions: MONAI's is not minus infinity, and neither is ours.
APART = -100.0


Grid = Float[jax.Array, "b x y z c"]


class WindowGrid(NamedTuple):
    """How a grid is cut into windows, per axis: the window's side, the shift, and the size after zeros were added at the end."""

    side: tuple[int, int, int]
    shift: tuple[int, int, int]
    padded: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        """Tokens in a window."""
        return prod(self.side)


def window_grid(grid: tuple[int, int, int], window: int, shift: int) -> WindowGrid:
    """An axis no longer than a window is one window and is not shifted; another is padded to a multiple of the window."""
    side = tuple(min(n, window) for n in grid)
    return WindowGrid(side, tuple(shift * (n > window) for n in grid), tuple(-(-n // s) * s for n, s in zip(grid, side, strict=True)))


def partition(x: Grid, c: WindowGrid) -> Float[jax.Array, "w n c"]:
    """Pads, rolls by the shift, and cuts: windows row-major after the sample, tokens row-major in the window."""
    b, *grid, d = x.shape
    x = jnp.pad(x, ((0, 0), *((0, p - n) for p, n in zip(c.padded, grid, strict=True)), (0, 0)))
    if any(c.shift):
        x = jnp.roll(x, [-s for s in c.shift], axis=(1, 2, 3))
    (wx, wy, wz), (px, py, pz) = c.side, c.padded
    cells = x.reshape(b, px // wx, wx, py // wy, wy, pz // wz, wz, d)
    return cells.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, c.tokens, d)


def merge_windows(windows: Float[jax.Array, "w n c"], c: WindowGrid, grid: tuple[int, int, int]) -> Grid:
    """The inverse of `partition`: rolls back and drops the padding."""
    (wx, wy, wz), (px, py, pz) = c.side, c.padded
    cells = windows.reshape(-1, px // wx, py // wy, pz // wz, wx, wy, wz, windows.shape[-1])
    x = cells.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, px, py, pz, windows.shape[-1])
    if any(c.shift):
        x = jnp.roll(x, c.shift, axis=(1, 2, 3))
    return x[:, : grid[0], : grid[1], : grid[2]]


@lru_cache
def regions(c: WindowGrid) -> np.ndarray:
    """Which part of the unrolled grid each token came from [w n]: a shifted window holds up to eight, and they do not see each other."""
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
    """1 between tokens of two regions: the few masks that differ [m n n] and, for each window, which is its own [w]."""
    labels, kinds = np.unique(regions(c), axis=0, return_inverse=True)
    return (labels[:, :, None] != labels[:, None, :]).astype(np.int8), kinds.reshape(-1).astype(np.int32)


@lru_cache
def relative(window: int) -> np.ndarray:
    """Rows of the table of biases, by query and key of a full window [n n]: (Δx, Δy, Δz), each counted from 1 - window, row-major."""
    at = np.indices((window,) * 3).reshape(3, -1)
    x, y, z = at[:, :, None] - at[:, None, :] + window - 1
    side = 2 * window - 1
    return (x * side + y) * side + z
