"""Standardisation of scans: orientation, spacing, intensities in [0, 1], and a window of fixed size.

Spec `paper` is the pipeline of the reproduced code (MONAI's Orientation, Spacing, ScaleIntensityRangePercentiles, CropForeground,
SpatialPad, CenterSpatialCrop) without MONAI. Spec `default` corrects its faults: saturated white matter, background noise taken for
foreground, a window centred on nose and neck that cuts brains, aliasing when thin voxels become thick.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped
from scipy import ndimage

from brainseg_jax.core.errors import InputError
from brainseg_jax.data import affine_checks
from brainseg_jax.data.nifti import Scan, orientation, reorient

NEAR = 1e-3  # MONAI's affine tolerance: a spacing (mm) or grid this close to the target is kept and not interpolated
ONE_GRID = 0.1  # voxels of distance between corners at which two grids are still the same
# Depths under the vertex at which forehead and occiput are located; below come nose, chin and neck, which do not indicate the brain.
# In a window of 192 mm these depths kept every brain of 141 IXI heads; the box of the whole head cut 86 of them.
FOREHEAD_MM, OCCIPUT_MM = 60.0, 100.0
FOREGROUND_MM = 4.0  # size of the blocks for the foreground's connected component
SHARED = 0.5  # minimum overlap of two images of one head, as a share of the smaller field of view


@dataclass(frozen=True)
class Spec:
    """The parameters of standardisation. Every record and checkpoint contains them, so that prediction repeats them.

    orientation: directions of the array axes, e.g. "RAS". spacing: mm, isotropic. size: voxels of the window.
    percentiles: (low, high) intensities mapped to 0 and 1, clipped. percentiles_over: "all" takes both over all voxels; "foreground" takes
    high over the foreground and low over all, so that low is the background's level and CSF remains distinct from air.
    anchor: "box" centres the window on the box of voxels above low; "crown" centres it between forehead and occiput and, if the head is
    longer than the window, keeps the vertex and cuts the neck. antialias_above: axes that become coarser by more than this factor are
    smoothed first; None never smooths. dtype: "uint8" stores round(255·value), "float16" the value.
    """

    name: str
    orientation: str
    spacing: float
    size: tuple[int, int, int]
    percentiles: tuple[float, float]
    percentiles_over: str
    anchor: str
    antialias_above: float | None
    dtype: str


class Standardized(NamedTuple):
    """A standardised image [x y z], or [x y z c] from several scans, in the spec's dtype; its affine, voxel → RAS mm; and a record, ready
    for JSON, for resampling back to the grid of the (first) scan."""

    image: Shaped[np.ndarray, "x y z *c"]
    affine: Float[np.ndarray, "4 4"]
    record: dict[str, Any]


def spec(name: str, spacing: float = 1.0, size: Sequence[int] = (192, 192, 192), dtype: str = "uint8") -> Spec:
    """The spec "paper" or "default" with a spacing (mm) and window size (voxels). Raises InputError for another name or unusable values."""
    if not spacing > 0:
        raise InputError(f"spacing is {spacing}; give a positive number of millimetres")
    if len(size) != 3 or min(size) < 1:
        raise InputError(f"size is {tuple(size)}; give three positive numbers of voxels")
    if dtype not in ("uint8", "float16"):
        raise InputError(f"dtype is {dtype!r}; choose uint8 or float16")
    given = {"spacing": float(spacing), "size": (int(size[0]), int(size[1]), int(size[2])), "dtype": dtype}
    if name == "paper":
        return Spec("paper", "RSP", percentiles=(5.0, 95.0), percentiles_over="all", anchor="box", antialias_above=None, **given)
    if name == "default":
        return Spec("default", "RAS", percentiles=(2.0, 99.5), percentiles_over="foreground", anchor="crown", antialias_above=1.5, **given)
    raise InputError(f"there is no standardisation {name!r}; choose paper or default")


def spec_of(record: dict[str, Any]) -> Spec:
    """The spec of a record, also of one from a JSON file."""
    return Spec(**{key: tuple(value) if isinstance(value, list) else value for key, value in record["spec"].items()})


def standardize(scan: Scan, spec: Spec, name: str = "scan") -> Standardized:
    """The standardised scan, 0 outside its field of view. `name` is the scan's name in errors. Raises InputError for an image without
    contrast: empty or constant."""
    image, affine, record = _standardize_float(scan, spec, name)
    return Standardized(_stored(image, spec), affine, record)


def standardize_all(scans: Sequence[Scan], spec: Spec, names: Sequence[str]) -> Standardized:
    """One or more images of one head as channels [x y z c] on the grid of the first, with intensities scaled separately.

    They need not share a voxel grid, only world coordinates: each has its own affine. 0 outside an image. The record has `remarks` on
    reading them. Raises InputError, using `names`, as `standardize` does, and for two images that overlap too little to be of one head.
    """
    first = standardize(scans[0], spec, names[0])
    first.record["remarks"] += [remark for scan, name in zip(scans[1:], names[1:], strict=True) for remark in _remarks(scan, name)]
    others = (_onto(scan, first.record, name, names[0]) for scan, name in zip(scans[1:], names[1:], strict=True))
    return first._replace(image=np.stack([first.image, *others], axis=-1))


def standardize_labels(labels: Scan, record: dict[str, Any], name: str = "labels") -> Integer[np.ndarray, "x y z"]:
    """Labels [x y z] on the grid of the standardised image of `record`: nearest neighbour, 0 outside the scan, smallest integer dtype.

    Of two equally near voxels the one with the even index is used. Raises InputError for labels that are not integers, or on another grid
    than the image (see `on_grid`).
    """
    if not np.issubdtype(labels.voxels.dtype, np.integer):
        raise InputError(f"{name}: labels of type {labels.voxels.dtype}; read them as whole numbers with nifti.read_labels")
    # From here on the image's affine is used, so that rounding in headers cannot reorient image and labels differently.
    source = np.array(record["source_affine"])
    turned = reorient(Scan(on_grid(labels, record["source_shape"], source, name), source), record["spec"]["orientation"])
    narrow = turned.voxels.astype(_smallest_integer(turned.voxels))
    resampled = _resample(narrow, turned.affine, np.array(record["resampled_affine"]), tuple(record["resampled_shape"]), order=0)
    size = tuple(record["spec"]["size"])
    inner, outer = _overlap(record["start"], resampled.shape, size)
    window = np.zeros(size, resampled.dtype)
    window[inner] = resampled[outer]
    return window


def on_grid(
    labels: Scan, shape: Sequence[int], affine: Float[np.ndarray, "4 4"], name: str, of: str = "image"
) -> Shaped[np.ndarray, "x y z"]:
    """The labels' voxels in the axis order of the grid of `of`, given by shape and affine: flips and permutations only.

    Raises InputError, beginning with `name`, for another shape, and if a corner is more than a tenth of a voxel away.
    """
    # Relative to the grid's own axes, so that oblique grids are treated as straight ones are.
    turned = reorient(Scan(labels.voxels, np.linalg.solve(affine, labels.affine)), "RAS")
    remedy = f"resample them by nearest neighbour onto the {of}'s grid"
    if turned.voxels.shape != tuple(shape):
        raise InputError(f"{name}: its {turned.voxels.shape} voxels are not the {tuple(shape)} of its {of}; {remedy}")
    away = affine_checks.farthest(turned.affine, np.eye(4), shape)
    if away > ONE_GRID:
        raise InputError(f"{name}: its corners lie up to {away:.2g} voxels away from those of its {of}; {remedy}")
    return turned.voxels


def _standardize_float(scan: Scan, spec: Spec, name: str) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "4 4"], dict[str, Any]]:
    """The standardised image before storage: float32 in [0, 1]."""
    turned, affine, shape = _turned(scan, spec)
    voxels = _resample(turned.voxels, turned.affine, affine, shape, order=1)
    low, high, foreground = _range(voxels, spec, name)
    start = _start_on_box(_box(foreground), spec.size) if spec.anchor == "box" else _start_on_crown(foreground, spec)
    image = _window(voxels, start, spec.size, low, high)
    record = {
        "spec": asdict(spec) | {"size": list(spec.size), "percentiles": list(spec.percentiles)},
        "source_orientation": orientation(scan.affine),
        "source_shape": list(scan.voxels.shape),
        "source_affine": np.asarray(scan.affine, np.float64).tolist(),
        "low": low,
        "high": high,
        "resampled_shape": list(shape),
        "resampled_affine": affine.tolist(),
        "start": list(start),
        "remarks": _remarks(scan, name),
    }
    return image, affine @ _shift(start), record


def _remarks(scan: Scan, name: str) -> list[str]:
    return [f"{name}: {remark}" for remark in scan.remarks]


def _onto(scan: Scan, record: dict[str, Any], name: str, first: str) -> Shaped[np.ndarray, "x y z"]:
    """Another image of a head on the grid of the standardised image of `record`, with intensities scaled as for a single scan."""
    spec = spec_of(record)
    turned, affine, shape = _turned(scan, spec)
    low, high, _ = _range(_resample(turned.voxels, turned.affine, affine, shape, order=1), spec, name)
    target, target_shape = np.array(record["resampled_affine"]), tuple(record["resampled_shape"])
    matrix = np.linalg.solve(turned.affine, target)
    matrix[np.abs(matrix) < 1e-9] = 0
    inside = np.ones(turned.voxels.shape, np.uint8)
    inside = ndimage.affine_transform(inside, matrix, output_shape=target_shape, order=0, mode="grid-constant", cval=0).astype(bool)
    volumes = [abs(np.linalg.det(a[:3, :3])) * np.prod(n) for a, n in ((target, target_shape), (turned.affine, turned.voxels.shape))]
    shared = np.count_nonzero(inside) * abs(np.linalg.det(target[:3, :3])) / min(volumes)
    if shared < SHARED:
        raise InputError(f"{name}: shares only {shared:.0%} of its field of view with {first}; register the two first, by their headers")
    voxels = _resample(turned.voxels, turned.affine, target, target_shape, order=1)
    return _stored(_window(np.where(inside, voxels, np.float32(low)), record["start"], spec.size, low, high), spec)


def _turned(scan: Scan, spec: Spec) -> tuple[Scan, Float[np.ndarray, "4 4"], tuple[int, ...]]:
    """The scan in the spec's orientation, smoothed for its spacing; and its affine and shape at this spacing."""
    turned = reorient(scan, spec.orientation)
    affine, shape = _resampled_grid(turned.affine, turned.voxels.shape, spec.spacing)
    voxels = turned.voxels.astype(np.float32, copy=False)
    if spec.antialias_above is not None:
        voxels = _smooth_for(voxels, np.diag(np.linalg.solve(turned.affine, affine))[:3], spec.antialias_above)
    return Scan(voxels, turned.affine), affine, shape


def _range(voxels: Float[np.ndarray, "x y z"], spec: Spec, name: str) -> tuple[float, float, Bool[np.ndarray, "x y z"]]:
    """The intensities that become 0 and 1, and the voxels on which the window is placed. Raises InputError without contrast."""
    if spec.percentiles_over == "all":
        low, high = (float(q) for q in np.percentile(voxels, spec.percentiles))
        foreground = voxels > np.float32(low)
    else:
        foreground, low = _foreground(voxels, spec, name)
        high = float(np.percentile(voxels[foreground], spec.percentiles[1]))
    if high > low:  # false of NaN too
        return low, high, foreground
    below, above = (f"{q:g}th percentile" for q in spec.percentiles)
    remedy = "check that it is a head on a dark background"
    if spec.anchor == "box":
        remedy += "; the default standardisation bears a small head"
    raise InputError(f"{name}: no contrast to scale, its {below} of intensity is {low:g} and the {above} {high:g}; {remedy}")


def _window(
    voxels: Float[np.ndarray, "x y z"], start: Sequence[int], size: Sequence[int], low: float, high: float
) -> Float[np.ndarray, "x2 y2 z2"]:
    """The window of `size` voxels that begins at `start`, scaled from [low, high] to [0, 1] and clipped."""
    # Padded after scaling, so that it is 0 outside the scan.
    image = np.zeros(size, np.float32)
    inner, outer = _overlap(start, voxels.shape, size)
    image[inner] = np.clip((voxels[outer] - np.float32(low)) / (np.float32(high) - np.float32(low)), 0, 1)
    return image


def _stored(image: Float[np.ndarray, "x y z"], spec: Spec) -> Shaped[np.ndarray, "x y z"]:
    return (np.rint(image * np.float32(255)) if spec.dtype == "uint8" else image).astype(spec.dtype)


def _shift(start: Sequence[int]) -> Float[np.ndarray, "4 4"]:
    matrix = np.eye(4)
    matrix[:3, 3] = start
    return matrix


def _resampled_grid(
    affine: Float[np.ndarray, "4 4"], shape: Sequence[int], spacing: float
) -> tuple[Float[np.ndarray, "4 4"], tuple[int, ...]]:
    """Affine and shape at an isotropic spacing, with axes in the same directions, made orthogonal (MONAI's Spacing with its defaults).

    The first voxel keeps its position, and n voxels at spacing s become round((n−1)·s/spacing + 1). If the source axes are not exactly
    orthogonal (in float32 headers of oblique scans they are not), voxel shape/2 keeps its position instead.
    """
    rotation, triangle = np.linalg.qr(affine[:3, :3])
    rotation = rotation * np.sign(np.diag(triangle))
    source = affine_checks.size(affine)
    target = np.where(np.abs(source - spacing) <= NEAR, source, spacing)
    new = np.eye(4)
    new[:3, :3] = rotation * target
    corners = (np.linalg.solve(new, affine) @ affine_checks.corners(shape))[:3]
    new_shape = np.round(np.ptp(corners, axis=1) + 1.0)
    # MONAI uses the corner that is smallest along every axis; as the axes keep their directions it can only be the first.
    if np.all(np.abs(np.min(corners - corners[:, :1], axis=1)) <= 1e-8):
        new[:3, 3] = affine[:3, 3]
    else:
        new[:3, 3] = affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3] - new[:3, :3] @ (new_shape / 2)
    new_shape = tuple(int(n) for n in new_shape)
    same = np.allclose(affine, new, rtol=1e-5, atol=NEAR) or np.allclose(np.linalg.solve(affine, new), np.eye(4), rtol=1e-5, atol=NEAR)
    return (affine, new_shape) if same and new_shape == tuple(shape) else (new, new_shape)


def _smooth_for(voxels: Float[np.ndarray, "x y z"], steps: Float[np.ndarray, "3"], above: float) -> Float[np.ndarray, "x y z"]:
    """Voxels smoothed along axes whose step, in source voxels, exceeds `above`, against aliasing in linear interpolation.

    The point spread of a voxel is modelled as a Gaussian with the voxel's width at half maximum; the difference between target and source
    is a Gaussian with σ = √(step² − 1) / 2.355 source voxels (Cardoso et al., MICCAI 2015, scale factor point spread).
    """
    for axis, step in enumerate(np.abs(steps)):
        if step > above:
            voxels = ndimage.gaussian_filter1d(voxels, float(np.sqrt((step**2 - 1) / (8 * np.log(2)))), axis=axis, mode="nearest")
    return voxels


def _resample(
    voxels: Shaped[np.ndarray, "x y z"],
    affine: Float[np.ndarray, "4 4"],
    new_affine: Float[np.ndarray, "4 4"],
    new_shape: Sequence[int],
    order: int,
) -> Shaped[np.ndarray, "x2 y2 z2"]:
    """Voxels on another grid, linear (order 1) or nearest (order 0), with the border repeated."""
    matrix = np.linalg.solve(affine, new_affine)
    off_diagonal = matrix[:3, :3] - np.diag(np.diag(matrix)[:3])
    if np.any(np.abs(off_diagonal) @ np.array(new_shape) > NEAR):  # a sheared source: its axes are not the target's
        return ndimage.affine_transform(voxels, matrix, output_shape=tuple(new_shape), order=order, mode="nearest", prefilter=False)
    offset = matrix[:3, 3] + off_diagonal @ ((np.array(new_shape) - 1) / 2)
    # Parallel axes: a pass along each axis, shrinking axes first, is 5 times faster than the general transform.
    for axis in np.argsort(np.array(new_shape) / np.array(voxels.shape)):
        at = matrix[axis, axis] * np.arange(new_shape[axis]) + offset[axis]
        voxels = along_axis(voxels, at, int(axis), order)
    return voxels


def along_axis(voxels: Shaped[np.ndarray, "x y z"], at: Float[np.ndarray, "n"], axis: int, order: int) -> Shaped[np.ndarray, "x2 y2 z2"]:
    """Voxels at the (fractional) indices `at` of one axis, linear (order 1) or nearest (order 0), with the border repeated."""
    last = voxels.shape[axis] - 1
    at = np.clip(np.round(at, 9), 0, last)  # rounding errors must not decide between two equally near voxels
    if len(at) == last + 1 and np.allclose(at, np.arange(last + 1), rtol=0, atol=1e-6):
        return voxels
    if order == 0:
        return voxels.take(np.rint(at).astype(int), axis)
    lower = np.minimum(np.floor(at).astype(int), max(last - 1, 0))
    weight = (at - lower).astype(voxels.dtype).reshape([-1 if k == axis else 1 for k in range(3)])
    low = voxels.take(lower, axis)
    # a + w·(b − a) instead of (1 − w)·a + w·b keeps a constant background exactly constant, as percentiles and box require.
    step = voxels.take(np.minimum(lower + 1, last), axis)
    step -= low
    step *= weight
    low += step
    return low


def _box(mask: Bool[np.ndarray, "x y z"]) -> list[tuple[int, int]]:
    """The bounding box of the true voxels, of which there must be one: first index and end, for each axis."""
    return [(axis.start, axis.stop) for axis in ndimage.find_objects(mask.view(np.uint8))[0]]


def _start_on_box(box: list[tuple[int, int]], size: tuple[int, int, int]) -> tuple[int, int, int]:
    """The first voxel of the window: the middle of the box after padding it to a multiple of size (an odd voxel at the high end)."""
    starts = []
    for (first, end), n in zip(box, size, strict=True):
        padded = -(-(end - first) // n) * n
        starts.append(first - (padded - (end - first)) // 2 + padded // 2 - n // 2)
    return tuple(starts)


def _foreground(voxels: Float[np.ndarray, "x y z"], spec: Spec, name: str) -> tuple[Bool[np.ndarray, "x y z"], float]:
    """The mask of the head and the background's level: the largest connected component above BET's robust threshold (Smith 2002, section
    2.2), t2 + 0.1·(t98 − t2). It is found on means of blocks of about 4 mm, which averages noise out and takes milliseconds."""
    t2, t98 = (float(q) for q in np.percentile(voxels, [spec.percentiles[0], 98]))
    threshold = np.float32(t2 + 0.1 * (t98 - t2))
    k = max(1, round(FOREGROUND_MM / spec.spacing))
    padding = [(0, -n % k) for n in voxels.shape]
    padded = np.pad(voxels, padding, mode="edge") if np.any(padding) else voxels
    x, y, z = (n // k for n in padded.shape)
    blocks = padded.reshape(x, k, y, k, z, k).mean((1, 3, 5))
    components, count = ndimage.label(blocks > threshold)
    largest = components == np.bincount(components.ravel())[1:].argmax() + 1 if count else np.zeros_like(blocks, bool)
    inside = largest.repeat(k, 0).repeat(k, 1).repeat(k, 2)[: voxels.shape[0], : voxels.shape[1], : voxels.shape[2]]
    head = inside & (voxels > threshold)
    if not head.any():
        raise InputError(f"{name}: no foreground above its background of {t2:g}; check that it is an image of a head and not empty")
    return head, t2


def _start_on_crown(head: Bool[np.ndarray, "x y z"], spec: Spec) -> tuple[int, int, int]:
    """The first voxel of the window: centred left to right, and between forehead and occiput; vertically on the head or, if the head is
    longer than the window, with the vertex at its end."""
    letters = spec.orientation
    up = next(k for k, letter in enumerate(letters) if letter in "SI")
    first, end = _box(head)[up]

    def box_under_vertex(depth_mm: float) -> list[tuple[int, int]]:
        n = max(1, round(depth_mm / spec.spacing))
        slices = [slice(None)] * 3
        slices[up] = slice(max(end - n, 0), end) if letters[up] == "S" else slice(first, first + n)
        return _box(head[tuple(slices)])

    forehead, occiput = box_under_vertex(FOREHEAD_MM), box_under_vertex(OCCIPUT_MM)
    starts = []
    for k, (letter, n) in enumerate(zip(letters, spec.size, strict=True)):
        low = first if k == up else forehead[k][0] if letter == "P" else occiput[k][0]
        high = end if k == up else forehead[k][1] if letter == "A" else occiput[k][1]
        if k == up and high - low > n:
            starts.append(high - n if letter == "S" else low)
        else:
            starts.append(low - (n - (high - low)) // 2)
    return tuple(starts)


def _overlap(start: Sequence[int], shape: Sequence[int], size: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The overlap of a window of `size` voxels beginning at `start` and a volume of `shape`: slices of the window and of the volume."""
    inner = tuple(slice(max(-s, 0), max(min(n - s, m), 0)) for s, n, m in zip(start, shape, size, strict=True))
    outer = tuple(slice(max(s, 0), max(min(s + m, n), 0)) for s, n, m in zip(start, shape, size, strict=True))
    return inner, outer


def _smallest_integer(labels: Integer[np.ndarray, "..."]) -> np.dtype:
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    return np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high))
