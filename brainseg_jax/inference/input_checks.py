"""Checks of a scan before segmentation (is it an MRI of a head?) and of the result after it (is there a brain?)."""

from typing import Any

import numpy as np
from jaxtyping import Float

from brainseg_jax.core.errors import InputError
from brainseg_jax.data.labels import Table
from brainseg_jax.data.nifti import Scan, from_array, from_image

# A brain is about 140 × 170 × 130 mm: a scan with a smaller extent or fewer slices cannot be measured.
LEAST_MM, LEAST_VOXELS = 60.0, 16
LEAST_ML = 200.0  # of a brain cut by the field of view; a newborn's whole brain has 350
AIR, AIR_SHARE = (-1100, -900), 0.05  # Hounsfield units; MRI has hardly any negative intensities
NOISE = 0.15  # correlation of neighbouring voxels: 141 IXI scans have at least 0.92, and 0.34 with noise of 0.3 of their maximum


def check_head_scan(scan: Scan, name: str) -> None:
    """Raises InputError for a scan that cannot be an MRI of a head: too small, in Hounsfield units, or noise."""
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    extent = spacing * scan.voxels.shape
    if min(scan.voxels.shape) < LEAST_VOXELS or extent.min() < LEAST_MM:
        size = f"{' × '.join(map(str, scan.voxels.shape))} voxels of {' × '.join(f'{mm:.3g}' for mm in spacing)} mm"
        raise InputError(
            f"{name}: {size} show too little of a head; give a scan with at least {LEAST_VOXELS} voxels and {LEAST_MM:.0f} mm on every axis"
        )
    air = np.mean((scan.voxels > AIR[0]) & (scan.voxels < AIR[1]))
    if air > AIR_SHARE:
        raise InputError(f"{name}: looks like CT, {air:.0%} of its voxels are air of about -1000 Hounsfield units; give an MRI")
    if _correlation(scan.voxels) < NOISE:
        raise InputError(f"{name}: is noise without a head, neighbouring voxels have nothing in common; check the image")


def check_not_empty(table: Table, volumes: Float[np.ndarray, "k"], name: str) -> None:
    """Raises InputError if the volumes (ml, background first) are all 0 or, where the table has the cerebrum, less than a brain's."""
    cerebrum = {2, 3, 41, 42} <= {id for structure in table.structures for id in structure.freesurfer}
    total = volumes[1:].sum()
    if total == 0 or (cerebrum and total < LEAST_ML):
        raise InputError(
            f"{name}: no brain was found in it, {total:.0f} ml of labels; check that it shows a head, and how the network was trained"
        )


def from_memory(given: Any) -> Scan:
    """The Scan of a nibabel image, or of (voxels, affine), as if read from a file. Raises InputError for anything else."""
    try:
        return from_image(given) if hasattr(given, "dataobj") else from_array(*_pair(given))
    except InputError as refusal:
        raise InputError(f"scan: {refusal}") from None


def _pair(given: Any) -> tuple[np.ndarray, np.ndarray]:
    given = given[:2] if isinstance(given, Scan) else given
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InputError(f"is {type(given).__name__}; give a file, an image of nibabel's, or (voxels, affine)")
    voxels, affine = np.asarray(given[0]), np.asarray(given[1], np.float64)
    if voxels.ndim != 3 or voxels.dtype.kind not in "biuf":
        raise InputError(f"an array of {voxels.dtype} and shape {voxels.shape}; give one grey value per voxel, [x, y, z]")
    if affine.shape != (4, 4):
        raise InputError(f"its affine has shape {affine.shape}; give the 4 × 4 matrix that takes voxel indices to RAS millimetres")
    return voxels, affine


def _correlation(voxels: Float[np.ndarray, "x y z"]) -> float:
    """The correlation of neighbouring voxels, the highest of the three axes; on every fourth line of an axis."""
    correlations = []
    for axis in range(3):
        lines = np.moveaxis(voxels, axis, 0)[:, ::4, ::4].astype(np.float64)
        lines -= lines.mean()
        power = np.mean(lines**2)
        correlations.append(float(np.mean(lines[1:] * lines[:-1]) / power) if power else 1.0)
    return max(correlations)
