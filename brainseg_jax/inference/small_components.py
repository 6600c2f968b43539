"""Small connected components, apart from the structure whose label they have, become what is around them: networks leave such components.

Only structures that are one piece of tissue in a healthy brain are treated so (`labels.connected_structures`), and all structures together.
A component of more than SMALL of the largest one stays, whatever it is: it may be there, and the QC report flags it.
"""

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage

from brainseg_jax.data.labels import Table, connected_structures

SMALL = 0.05  # of the largest component's voxels
TOUCHING = np.ones((3, 3, 3), bool)  # by a face, an edge or a corner

Box = tuple[slice, ...]


def relabel_small_components(classes: Integer[np.ndarray, "x y z"], table: Table) -> None:
    """Gives each small component, in place, the class that most of the voxels around it have, the smallest of equals; what lies apart from
    all structures together becomes background.

    It joins a component that is there, so no new one arises.
    """
    boxes = ndimage.find_objects(classes, len(table.structures))
    for n in connected_structures(table):
        if box := boxes[n - 1]:
            part = classes[_grown(box, classes.shape)]
            for place, component in small_components(part == n):
                here = part[place]
                here[component] = np.bincount(here[ndimage.binary_dilation(component, TOUCHING) & ~component]).argmax()
    for place, component in small_components(classes > 0):
        classes[place][component] = 0


def small_components(mask: Bool[np.ndarray, "x y z"]) -> list[tuple[Box, Bool[np.ndarray, "i j k"]]]:
    """Components of at most SMALL of the largest: a box around each with room for its neighbours, and its voxels in there."""
    components, n = ndimage.label(mask, TOUCHING)
    if n < 2:
        return []
    voxels = np.bincount(components.ravel())
    boxes, largest = ndimage.find_objects(components), voxels[1:].max()
    wider = [(i, _grown(boxes[i - 1], mask.shape)) for i in range(1, n + 1) if voxels[i] <= SMALL * largest]
    return [(box, components[box] == i) for i, box in wider]


def _grown(box: Box, shape: tuple[int, ...]) -> Box:
    """By a voxel on every side, where there is one."""
    return tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, shape, strict=True))
