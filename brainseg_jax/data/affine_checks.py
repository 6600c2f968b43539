"""Affines that no scan of a head can have, and two affines of one header that contradict each other: they are refused here.

A header of NIfTI says the place of its voxels twice, by an s-form (a matrix) and by a q-form (a rotation and the voxel size), and the
voxel size a third time. FSL, SPM, ITK and FreeSurfer differ in which they go by, so where they differ a tool silently has it wrong.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from brainseg_jax.core.errors import InputError

SPACINGS = (0.1, 20.0)  # mm; outside them the unit is wrong or the header is damaged
FIELD = 700.0  # mm that a volume may be long: no bore is wider
REACH = 3000.0  # mm from the origin to the middle of a volume: no table goes farther
SAME = 0.01  # share by which two voxel sizes may differ and be one
NEAR = 1.0  # mm by which two places may differ and be one; a quaternion in float32 can be 0.2 mm off at a corner
SCANNER, TEMPLATES = 1, (3, 4, 5)  # codes of a form: the scanner's coordinates, and Talairach's, MNI's or another template's

Affine = Float[np.ndarray, "4 4"]


class Form(NamedTuple):
    """An affine in mm and what its space is: NIfTI's code, 1 the scanner's, 2 that of another scan, 3 to 5 a template's."""

    affine: Affine
    code: int


def sound(affine: Affine, shape: Sequence[int]) -> Affine:
    """The affine of a volume of `shape` in float64. Raises InputError where it cannot be one of a scan of a head."""
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
    """The affine to go by of two that are sound and have one handedness, and what is to be said of it: the s-form's, as in most tools.

    The scanner's q-form is taken where the s-form leads to a template and stretches the head. Raises InputError where both cannot be right:
    voxel sizes that differ by more than 1 %, and two places in one space.
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
    # Of a sheared s-form a q-form holds the closest rotation.
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
    """What is to be said of an s-form that has code 0, which means that it is not to be used: if it is there, where it leads."""
    if not sform[:3].any() or (np.isfinite(sform).all() and farthest(sform, qform.affine, shape) <= NEAR):
        return ()
    return (f"its s-form, which has code 0, leads elsewhere than its q-form (code {qform.code}), which was used",)


def same_size(affine: Affine, spacing: Float[np.ndarray, "3"], other: str) -> None:
    """Raises InputError where the voxels of an s-form and those of `other`, of `spacing` mm, differ in size by more than 1 %."""
    own = size(affine)
    if (np.abs(own - spacing) > SAME * np.minimum(own, spacing)).any():
        raise InputError(
            f"s-form ({in_words(own)} mm) and {other} ({in_words(spacing)} mm) disagree on the voxel size; find the right one and write it "
            "into the other, e.g. the s-form's in nibabel with image.set_qform(image.get_sform(), 1)"
        )


def opposed(a: Affine, b: Affine) -> bool:
    """Whether two affines differ in handedness, or point an axis over 45° apart: more than a registration to a template turns a head."""
    a, b = a[:3, :3], b[:3, :3]
    cosines = (a * b).sum(axis=0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))
    return bool(np.linalg.det(a) * np.linalg.det(b) < 0 or cosines.min() < np.sqrt(0.5))


def size(affine: Affine) -> Float[np.ndarray, "3"]:
    """The voxel size in mm."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def farthest(a: Affine, b: Affine, shape: Sequence[int]) -> float:
    """How far two grids of one shape lie apart at the corner where it is most, in mm."""
    return float(np.linalg.norm((a - b) @ corners(shape), axis=0).max())


def corners(shape: Sequence[int]) -> Float[np.ndarray, "4 8"]:
    """The corners of a grid in voxels, a column each under it a 1; that of the first voxel comes first."""
    return np.array([(*corner, 1.0) for corner in product(*((0.0, n - 1.0) for n in shape))]).T


def unsheared(affine: Affine) -> Affine:
    """The affine whose axes are the closest ones at right angles, with the same voxel size and origin: what a q-form can hold."""
    u, _, v = np.linalg.svd(affine[:3, :3] / size(affine))
    out = affine.copy()
    out[:3, :3] = u @ v * size(affine)
    return out


def in_words(spacing: Float[np.ndarray, "3"]) -> str:
    """A voxel size as "1 × 1 × 1.2"."""
    return " × ".join(f"{s:.4g}" for s in spacing)
