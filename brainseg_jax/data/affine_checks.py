"""Checks of affines: impossible ones for a scan of a head, and contradictions between the two affines of a header.

A NIfTI header has the place of its voxels twice, as an s-form (a matrix) and a q-form (a rotation and the voxel size), and the voxel size a
third time. FSL, SPM, ITK and FreeSurfer differ in which they use, so if the forms differ some tool is silently wrong.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from brainseg_jax.core.errors import InputError

SPACINGS = (0.1, 20.0)  # mm; outside them the unit is wrong or the header is damaged
FIELD = 700.0  # mm: maximum length of a volume, since no bore is wider
REACH = 3000.0  # mm: maximum distance from the origin to the middle of a volume, since no table goes farther
SAME = 0.01  # relative difference at which two voxel sizes still agree
NEAR = 1.0  # mm at which two places still agree; a quaternion in float32 can be 0.2 mm off at a corner
SCANNER, TEMPLATES = 1, (3, 4, 5)  # codes of a form: the scanner's coordinates, and Talairach's, MNI's or another template's

Affine = Float[np.ndarray, "4 4"]


class Form(NamedTuple):
    """An affine in mm and NIfTI's code of its space: 1 the scanner's, 2 that of another scan, 3 to 5 a template's."""

    affine: Affine
    code: int


def sound(affine: Affine, shape: Sequence[int]) -> Affine:
    """The affine of a volume of `shape` in float64. Raises InputError if it is impossible for a scan of a head."""
    affine = affine.astype(np.float64)
    if not np.isfinite(affine).all():
        raise InputError("its affine is not finite; set the orientation again or export the image again")
    if np.abs(affine).max() > 1e6:
        raise InputError(f"its affine holds {np.abs(affine).max():.3g} mm; the header is damaged, export the image again")
    spacing = size(affine)
    if abs(np.linalg.det(affine[:3, :3])) <= 1e-3 * spacing.prod():
        raise InputError("its affine is singular, two axes run along one line; set the orientation again or export the image again")
    if spacing.min() < SPACINGS[0] or spacing.max() > SPACINGS[1]:
        raise InputError(
            f"voxels of {in_words(spacing)} mm are outside {SPACINGS[0]:g} to {SPACINGS[1]:g}; "
            "set the voxel size and its unit (xyzt_units) in the header right"
        )
    if (longest := (spacing * shape).max()) > FIELD:
        raise InputError(f"is {longest:.0f} mm long, more than a head in a scanner; set the voxel size right, or crop it to the head")
    middle = affine @ [*((np.array(shape) - 1) / 2), 1]
    if (away := np.linalg.norm(middle[:3])) > REACH:
        raise InputError(f"its middle lies {away / 1000:.3g} m from the origin; the header is damaged, set its origin right")
    return affine


def settled(sform: Form, qform: Form, shape: Sequence[int]) -> tuple[Affine, tuple[str, ...]]:
    """The affine to use of two sound ones with the same handedness, and remarks: the s-form, as in most tools.

    The scanner's q-form is used if the s-form leads to a template and stretches the head. Raises InputError for contradictions: voxel sizes
    that differ by more than 1 %, and two places in one space.
    """
    s, q = sform.affine, qform.affine
    stretch = np.linalg.svd(s[:3, :3] @ np.linalg.inv(q[:3, :3]), compute_uv=False)
    scanned = qform.code == SCANNER and sform.code in TEMPLATES
    if scanned and max(abs(stretch - 1)) > SAME and stretch.min() > 0.5 and stretch.max() < 2:
        sizes = f"voxels of {in_words(size(s))} mm, the scanner's q-form of {in_words(size(q))}"
        return q, (f"its s-form (code {sform.code}) leads to a template and has {sizes}; the scanner's was used",)
    same_size(s, size(q), "q-form")
    away = farthest(s, q, shape)
    if away <= NEAR:
        return s, ()
    # A q-form cannot hold shear; it has the rotation closest to a sheared s-form.
    rigid = 2 * farthest(unsheared(s), q, shape) <= NEAR
    if not rigid and sform.code == qform.code and sform.code in (SCANNER, *TEMPLATES):
        raise InputError(
            f"s-form and q-form (both code {sform.code}) place its voxels up to {away:.3g} mm apart; find the right one "
            "and copy it over the other with fslorient -copysform2qform or -copyqform2sform"
        )
    return s, () if rigid else (
        f"its q-form (code {qform.code}) lies up to {away:.0f} mm from its s-form (code {sform.code}), which was used",
    )


def unused(sform: Affine, qform: Form, shape: Sequence[int]) -> tuple[str, ...]:
    """The remark on an s-form with code 0 (not to be used) that differs from the q-form, if any."""
    if not sform[:3].any() or (np.isfinite(sform).all() and farthest(sform, qform.affine, shape) <= NEAR):
        return ()
    return (f"its s-form, which has code 0, leads elsewhere than its q-form (code {qform.code}), which was used",)


def same_size(affine: Affine, spacing: Float[np.ndarray, "3"], other: str) -> None:
    """Raises InputError if the voxel size of an s-form differs by more than 1 % from that of `other`, `spacing` in mm."""
    own = size(affine)
    if (np.abs(own - spacing) > SAME * np.minimum(own, spacing)).any():
        raise InputError(
            f"s-form ({in_words(own)} mm) and {other} ({in_words(spacing)} mm) disagree on the voxel size; find the right one and write it "
            "into the other, e.g. the s-form's in nibabel with image.set_qform(image.get_sform(), 1)"
        )


def opposed(a: Affine, b: Affine) -> bool:
    """Whether two affines differ in handedness, or in an axis by over 45°, more than a registration to a template rotates a head."""
    a, b = a[:3, :3], b[:3, :3]
    cosines = (a * b).sum(axis=0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))
    return bool(np.linalg.det(a) * np.linalg.det(b) < 0 or cosines.min() < np.sqrt(0.5))


def size(affine: Affine) -> Float[np.ndarray, "3"]:
    """The voxel size in mm."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def farthest(a: Affine, b: Affine, shape: Sequence[int]) -> float:
    """The largest distance in mm between corresponding corners of two grids of one shape."""
    return float(np.linalg.norm((a - b) @ corners(shape), axis=0).max())


def corners(shape: Sequence[int]) -> Float[np.ndarray, "4 8"]:
    """The corners of a grid in homogeneous voxel coordinates, a column each, the first voxel first."""
    return np.array([(*corner, 1.0) for corner in product(*((0.0, n - 1.0) for n in shape))]).T


def unsheared(affine: Affine) -> Affine:
    """The affine with the closest orthogonal axes, the same voxel size and origin: what a q-form can hold."""
    u, _, v = np.linalg.svd(affine[:3, :3] / size(affine))
    out = affine.copy()
    out[:3, :3] = u @ v * size(affine)
    return out


def in_words(spacing: Float[np.ndarray, "3"]) -> str:
    """A voxel size as text, e.g. "1 × 1 × 1.2"."""
    return " × ".join(f"{s:.4g}" for s in spacing)
