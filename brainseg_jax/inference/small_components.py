"""Removal of small connected components: voxels apart from their structure get the label of the voxels around them.

Only for structures that are connected in a healthy brain (`labels.connected_structures`), and for the foreground as a whole. A component of
more than SMALL of the largest one stays: it may be real, and the QC report flags it.
"""

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage

from brainseg_jax.data.labels import Table, connected_structures

SMALL = 0.05  # of the largest component's voxels
TOUCHING = np.ones((3, 3, 3), bool)  # by a face, an edge or a corner

Box = tuple[slice, ...]


def relabel_small_components(classes: Integer[np.ndarray, "x y z"], table: Table) -> None:
    """Gives each small component, in place, the most frequent class of the voxels around it (the smallest of equals); small components of
    the foreground become background.

    A relabelled component joins an existing one, so no new ones arise.
    """
    boxes = ndimage.find_objects(classes, len(table.structures))
    for n in connected_structures(table):
        if box := boxes[n - 1]:
            part = classes[_grown(box, classes.shape)]
            for place, component in small_components(part == n):
                neighbours = part[place][ndimage.binary_dilation(component, TOUCHING) & ~component]
                part[place][component] = np.bincount(neighbours).argmax()
    for place, component in small_components(classes > 0):
        classes[place][component] = 0


def small_components(mask: Bool[np.ndarray, "x y z"]) -> list[tuple[Box, Bool[np.ndarray, "i j k"]]]:
    """Components of at most SMALL of the largest: the box around each, enlarged by its neighbours, and its mask in the box."""
    components, n = ndimage.label(mask, TOUCHING)
    if n < 2:
        return []
    voxels = np.bincount(components.ravel())
    boxes, largest = ndimage.find_objects(components), voxels[1:].max()
    wider = [(i, _grown(boxes[i - 1], mask.shape)) for i in range(1, n + 1) if voxels[i] <= SMALL * largest]
    return [(box, components[box] == i) for i, box in wider]


def _grown(box: Box, shape: tuple[int, ...]) -> Box:
    """The box enlarged by a voxel on every side, within the array."""
    return tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, shape, strict=True))
