"""Islands: small pieces that lie apart from the structure whose label they have. Networks leave them, and they become what is around them.

Only structures that are one piece of tissue in a healthy brain have islands (`labels.connected`), and so have all structures together. A
piece of more than SMALL of the largest one stays, whatever it is: it may be there, and the page flags it for a person to look at.
"""

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage

from brainseg_jax.data.labels import Table, connected

SMALL = 0.05  # of the largest piece's voxels
TOUCHING = np.ones((3, 3, 3), bool)  # by a face, an edge or a corner

Box = tuple[slice, ...]


def dissolve(classes: Integer[np.ndarray, "x y z"], table: Table) -> None:
    """Gives each island, in place, the class that most of the voxels around it have, the smallest of equals; what lies apart from all
    structures together becomes background.

    An island joins a piece that is there, so no new one arises.
    """
    boxes = ndimage.find_objects(classes, len(table.structures))
    for n in connected(table):
        if box := boxes[n - 1]:
            part = classes[_grown(box, classes.shape)]
            for place, island in islands(part == n):
                here = part[place]
                here[island] = np.bincount(here[ndimage.binary_dilation(island, TOUCHING) & ~island]).argmax()
    for place, island in islands(classes > 0):
        classes[place][island] = 0


def islands(mask: Bool[np.ndarray, "x y z"]) -> list[tuple[Box, Bool[np.ndarray, "i j k"]]]:
    """Pieces of at most SMALL of the largest: a box around each with room for its neighbours, and its voxels in there."""
    pieces, n = ndimage.label(mask, TOUCHING)
    if n < 2:
        return []
    voxels = np.bincount(pieces.ravel())
    boxes, largest = ndimage.find_objects(pieces), voxels[1:].max()
    wider = [(i, _grown(boxes[i - 1], mask.shape)) for i in range(1, n + 1) if voxels[i] <= SMALL * largest]
    return [(box, pieces[box] == i) for i, box in wider]


def _grown(box: Box, shape: tuple[int, ...]) -> Box:
    """By a voxel on every side, where there is one."""
    return tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, shape, strict=True))
