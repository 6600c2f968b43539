"""A standardised volume back on its scan's own grid, in the plainest way there is: what the product's way is compared with."""

import numpy as np
from scipy import ndimage


def restore(volume, record, order=0):
    """0 where the window did not reach. order: 0 labels, 1 probabilities."""
    affine = np.array(record["resampled_affine"])
    affine[:3, 3] = (affine @ [*record["start"], 1])[:3]
    matrix = np.linalg.solve(affine, np.array(record["source_affine"]))
    matrix[np.abs(matrix) < 1e-9] = 0  # so that the edge is not lost to rounding
    shape = tuple(record["source_shape"])
    return ndimage.affine_transform(volume, matrix, output_shape=shape, order=order, mode="grid-constant", cval=0, prefilter=False)
