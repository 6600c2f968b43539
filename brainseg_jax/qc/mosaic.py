"""The mosaic of a case: slices in three planes with outlines of the structures, as small pictures of one scale and size.

Every picture shows the same field of view in mm, so brains can be compared between cases; neurological convention, left on the left. The
scan is a JPEG and the outlines are a transparent PNG of the same size, to be shown over it or hidden.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, UInt8
from scipy import ndimage

from brainseg_jax.data.labels import Table, swap
from brainseg_jax.data.nifti import Scan, orientation
from brainseg_jax.qc.figures import ras_axes, to_ras
from brainseg_jax.qc.images import jpeg, png

MM = 1.25  # a pixel
WINDOW = (160, 200, 160)  # mm right, anterior and superior: any brain with a margin
CUTS = (0.2, 0.5, 0.8)  # positions of slices, as quantiles of the segmented voxels along the axis
PLANES = ("sagittal", "coronal", "axial")  # normal to the axes right, anterior, superior
QUALITY = 50  # of the JPEG: with outlines 37 kB a case (seg33, noisy head); PNG with 16 grey levels would take twice that
WHITE = 0.8  # grey of the brightest tissue: outlines of white matter are white
BEYOND = 0.22  # grey of the area outside the image, so that it is not mistaken for dark tissue
GAP = 4  # pixels between slices
# Rows of five pixels as binary numbers.
GLYPHS = {"L": (16, 16, 16, 16, 16, 16, 31), "R": (30, 17, 17, 30, 20, 18, 17), "P": (30, 17, 17, 30, 16, 16, 16)}
GLYPHS["A"] = (14, 17, 17, 31, 17, 17, 17)


class Picture(NamedTuple):
    """Slices of one of PLANES side by side: `scan` as JPEG, `lines` as PNG, of the same size in pixels."""

    plane: str
    width: int
    height: int
    scan: bytes
    lines: bytes


def mosaic(scan: Scan, classes: Integer[np.ndarray, "x y z"], table: Table) -> list[Picture]:
    """Pictures of a scan and of class numbers of a table on its grid, one for each of PLANES.

    Slices follow the axes of the grid, which differ from the world's in an oblique scan.
    """
    codes = orientation(scan.affine)
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)[ras_axes(codes)]
    grey, labels = (to_ras(volume, codes) for volume in (scan.voxels, classes))  # no copies
    cuts = _cuts(labels)
    rows = [_slices(grey, labels, axis, cuts, spacing) for axis in range(3)]
    greys, found = zip(*rows, strict=True)
    every = np.concatenate([f.ravel() for f in found])
    low, high = _range(np.concatenate([g.ravel() for g in greys]), every)
    rank = _rank(every, table)
    colour_of, palette = _palette(table)
    pictures = []
    for axis, plane in enumerate(PLANES):
        shade = np.where(found[axis] < 0, BEYOND, WHITE * np.clip((greys[axis] - low) / (high - low), 0, 1))
        tiles = [np.rint(255 * tile).astype(np.uint8) for tile in shade]
        outlines = [np.where(_outline(rank[tile]), colour_of[tile], 0).astype(np.uint8) for tile in found[axis]]
        for tile in tiles:
            for letter, column in zip("PA" if plane == "sagittal" else "LR", (3, tile.shape[1] - 13), strict=True):
                _stamp(tile, letter, column)
        image = _side_by_side(tiles)
        pictures.append(Picture(plane, image.shape[1], image.shape[0], jpeg(image, QUALITY), png(_side_by_side(outlines), palette)))
    return pictures


def _cuts(labels: Integer[np.ndarray, "x y z"]) -> list[list[int]]:
    """The slice indices of each axis at CUTS of the segmented voxels, or of the image if there are none."""
    inside = labels > 0
    indices = []
    for axis in range(3):
        mass = inside.sum(axis=tuple({0, 1, 2} - {axis}))
        mass = np.cumsum(mass if mass.any() else np.ones_like(mass))
        indices.append(np.searchsorted(mass, np.array(CUTS) * mass[-1]).tolist())
    return indices


def _slices(
    grey: Float[np.ndarray, "x y z"],
    labels: Integer[np.ndarray, "x y z"],
    axis: int,
    cuts: list[list[int]],
    spacing: Float[np.ndarray, "3"],
) -> tuple[Float[np.ndarray, "n h w"], Integer[np.ndarray, "n h w"]]:
    """Slices normal to an axis as pictures, top row first, centred on the other axes' middle cut; classes are −1 outside the image."""
    across, up = (a for a in range(3) if a != axis)
    size = [round(WINDOW[a] / MM) for a in (across, up)]
    steps = MM / spacing[[across, up]]
    first = [_first(cuts[a][len(CUTS) // 2], labels.shape[a], n, step) for a, n, step in zip((across, up), size, steps, strict=True)]
    blur = np.sqrt(np.maximum(steps**2 - 1, 0) / (8 * np.log(2)))  # widens voxels to the width of a pixel
    place = {"matrix": np.diag(steps), "offset": first, "output_shape": size}
    greys, found = [], []
    for cut in cuts[axis]:
        smooth = ndimage.gaussian_filter(np.moveaxis(grey, axis, 0)[cut].astype(np.float32), blur, mode="nearest")
        greys.append(ndimage.affine_transform(smooth, **place, order=1, mode="nearest").T[::-1])
        slab = np.moveaxis(labels, axis, 0)[cut].astype(np.int32)
        found.append(ndimage.affine_transform(slab, **place, order=0, mode="grid-constant", cval=-1).T[::-1])
    return np.stack(greys), np.stack(found)


def _first(middle: int, voxels: int, pixels: int, step: float) -> float:
    """The start in voxels of a window of pixels around `middle`: moved into the image, or centred on the image if that is smaller.

    So the rest of a brain of which only one half was segmented is still shown.
    """
    room = voxels - 1 - (pixels - 1) * step
    return float(np.clip(middle - (pixels - 1) / 2 * step, 0, room)) if room > 0 else room / 2


def _range(greys: Float[np.ndarray, "n"], found: Integer[np.ndarray, "n"]) -> tuple[float, float]:
    """The greys shown as black and as WHITE: the image's 1st percentile, and the 99.5th of segmented voxels (of the image if none)."""
    image = greys[found >= 0]
    low = float(np.percentile(image, 1))
    high = float(np.percentile(greys[found > 0] if (found > 0).any() else image, 99.5))
    return low, high if high > low else low + 1


def _rank(found: Integer[np.ndarray, "n"], table: Table) -> Integer[np.ndarray, "k"]:
    """The rank of each class: where two structures meet, the outline is that of the higher one. Background and outside (−1) have 0.

    The cortex ranks lowest, since outlines on both of its sides would hide it; then pairs of structures that fill more of the pictures.
    """
    partner = swap(table)
    counts = np.bincount(found[found > 0], minlength=len(partner))
    room = counts + counts[partner] * (partner != np.arange(len(partner)))
    other = [s.tissue != "cortex" for s in table.structures]
    rank = np.zeros(len(partner) + 1, int)  # the last is indexed by −1
    rank[np.lexsort((-room[1:], other)) + 1] = np.arange(1, len(partner))
    return rank


def _outline(rank: Integer[np.ndarray, "h w"]) -> Integer[np.ndarray, "h w"]:
    """1 where one of the four neighbours ranks lower."""
    return (ndimage.minimum_filter(rank, footprint=ndimage.generate_binary_structure(2, 1), mode="nearest") < rank).astype(int)


def _palette(table: Table) -> tuple[Integer[np.ndarray, "k"], UInt8[np.ndarray, "n 4"]]:
    """The palette index of each class (and of −1), and the palette: 0 is transparent; colours beyond the 255th share the last."""
    colours = sorted({s.colour for s in table.structures})[:255]
    number = {colour: n for n, colour in enumerate(colours, 1)}
    palette = [(0, 0, 0, 0), *((*bytes.fromhex(colour[1:]), 255) for colour in colours)]
    return np.array([0, *(number.get(s.colour, 255) for s in table.structures), 0]), np.array(palette, np.uint8)


def _side_by_side(tiles: list[UInt8[np.ndarray, "h w"]]) -> UInt8[np.ndarray, "h w2"]:
    return np.concatenate([np.pad(tile, ((0, 0), (0, GAP if i < len(tiles) - 1 else 0))) for i, tile in enumerate(tiles)], axis=1)


def _stamp(tile: UInt8[np.ndarray, "h w"], letter: str, column: int) -> None:
    """Draws a letter of 10 × 14 pixels near the top, in place, on a black background."""
    bits = np.unpackbits(np.array(GLYPHS[letter], np.uint8)[:, None], axis=1)[:, 3:].repeat(2, 0).repeat(2, 1)
    tile[2:20, column - 2 : column + 12] = 0
    tile[4:18, column : column + 10] = 230 * bits
