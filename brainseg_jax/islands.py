"""Islands: small pieces that lie apart from the structure whose label they have. Networks leave them, and they become what is around them.

Only structures that are one piece of tissue in a healthy brain have islands (`labels.connected`), and so have all structures together. A
piece of more than SMALL of the largest one stays, whatever it is: it may be there, and the page flags it for a person to look at.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from brainseg_jax.data.labels import Table, connected

SMALL = 0.05  # of the largest piece's voxels


def dissolve(soft: UInt8[np.ndarray, "k x y z"], table: Table) -> Float[np.ndarray, "k"]:
    """Gives the probability (bytes, as in `prediction.Found`) that a structure has in its islands to the next likeliest class there, and
    makes background of islands of all structures together, in place. Returns what each class gains, as a sum of bytes."""
    likeliest = soft.argmax(axis=0).astype(np.int32)
    boxes, gained = ndimage.find_objects(likeliest, len(soft) - 1), np.zeros(len(soft))
    for n in connected(table):
        if (box := boxes[n - 1]) and (island := _islands(likeliest[box] == n)).any():
            values, here = soft[(slice(None), *box)], np.arange(np.count_nonzero(island))
            there = values[:, island].astype(np.int32)
            before = there.sum(axis=1)
            own = there[n].copy()
            there[n] = 0
            heir = there.argmax(axis=0)
            there[heir, here] = np.minimum(there[heir, here] + own, np.iinfo(np.uint8).max)
            values[:, island] = there
            likeliest[box][island] = heir
            gained += there.sum(axis=1) - before
    if (island := _islands(likeliest > 0)).any():
        before = soft[:, island].sum(axis=1, dtype=np.int64)
        soft[:, island] = 0
        soft[0, island] = np.iinfo(np.uint8).max
        gained += soft[:, island].sum(axis=1, dtype=np.int64) - before
    return gained


def _islands(mask: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Pieces, joined by faces, edges or corners, of at most SMALL of the largest."""
    pieces, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    voxels = np.bincount(pieces.ravel())
    voxels[0] = 0  # what is in no piece
    small = voxels <= SMALL * voxels.max()
    small[0] = False
    return small[pieces]
