"""A scan on the scanner's grid becomes one on the networks' grid: orientation, spacing, intensities in [0, 1], a window of fixed size.

Spec `paper` is the pipeline of the reproduced code (MONAI's Orientation, Spacing, ScaleIntensityRangePercentiles, CropForeground,
SpatialPad, CenterSpatialCrop) without MONAI. Spec `default` mends what goes wrong with it: white matter saturated, background noise taken
for foreground, a window centred on nose and neck that cuts brains, aliasing when thin voxels become thick.
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

NEAR = 1e-3  # MONAI's affine tolerance: a spacing (mm) or a grid this close to the wanted one is kept as it is, not interpolated
ONE_GRID = 0.1  # voxels by which the corners of two grids may lie apart and be one grid
# How deep under the vertex forehead and occiput are looked for; lower come nose, chin and neck, which say nothing about where the brain is.
# In a window of 192 mm these depths kept every brain of 141 IXI heads; the box of the whole head cut 86 of them.
FOREHEAD_MM, OCCIPUT_MM = 60.0, 100.0
FOREGROUND_MM = 4.0  # blocks on which the foreground's connected component is found
SHARED = 0.5  # of the smaller of two fields of view, that both images of one head have to show


@dataclass(frozen=True)
class Spec:
    """What a standardised volume is. It travels in every record and checkpoint, so that prediction repeats it.

    orientation: where the array axes point, as in "RAS". spacing: mm, isotropic. size: voxels of the window.
    percentiles: (low, high) intensities mapped to 0 and 1, clipped. percentiles_over: "all" takes both over all voxels; "foreground" takes
    high over the foreground and low over all, since low is to be the background's level: then CSF stays apart from air.
    anchor: "box" centres the window on the box of voxels above low; "crown" centres it between forehead and occiput and, where the head is
    longer than the window, keeps the vertex and cuts the neck. antialias_above: an axis that gets coarser by more than this factor is
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
    """image [x y z], or [x y z c] of several, in the spec's dtype; affine: voxel → RAS mm of its grid; record: JSON-able, all that leads
    back to the grid of the scan, which is the first of several."""

    image: Shaped[np.ndarray, "x y z *c"]
    affine: Float[np.ndarray, "4 4"]
    record: dict[str, Any]


def spec(name: str, spacing: float = 1.0, size: Sequence[int] = (192, 192, 192), dtype: str = "uint8") -> Spec:
    """The spec "paper" or "default" at a spacing (mm) and window size (voxels). InputError for any other name or an unusable value."""
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
    """The spec a record was made with, also when the record comes from a JSON file."""
    return Spec(**{key: tuple(value) if isinstance(value, list) else value for key, value in record["spec"].items()})


def standardize(scan: Scan, spec: Spec, name: str = "scan") -> Standardized:
    """Image [x y z] of spec.size and spec.dtype with its affine and record; 0 outside the scan. `name` is what errors call the scan.

    InputError where the intensities leave nothing to scale: an empty or constant image.
    """
    image, affine, record = _standardize_float(scan, spec, name)
    return Standardized(_stored(image, spec), affine, record)


def standardize_all(scans: Sequence[Scan], spec: Spec, names: Sequence[str]) -> Standardized:
    """Images of one head, one or more, as the channels of one [x y z c], all on the grid of the first; the intensities of each by itself.

    They need not share voxels, only millimetres: each goes by its own affine. 0 where an image does not reach. The record's `remarks` say
    what there is to say of how they were read. InputError, calling them by `names`, as of `standardize`, and where two images show too
    little of the same place to be of one head.
    """
    first = standardize(scans[0], spec, names[0])
    first.record["remarks"] += [remark for scan, name in zip(scans[1:], names[1:], strict=True) for remark in _remarks(scan, name)]
    others = (_onto(scan, first.record, name, names[0]) for scan, name in zip(scans[1:], names[1:], strict=True))
    return first._replace(image=np.stack([first.image, *others], axis=-1))


def standardize_labels(labels: Scan, record: dict[str, Any], name: str = "labels") -> Integer[np.ndarray, "x y z"]:
    """Labels [x y z] on the very grid of the image whose record is given: nearest neighbour, 0 outside the scan, smallest integer dtype.

    Of two equally near voxels the one with the even index is taken. InputError where the labels are not whole numbers or lie on another
    grid than the image (see `on_grid`).
    """
    if not np.issubdtype(labels.voxels.dtype, np.integer):
        raise InputError(f"{name}: labels of type {labels.voxels.dtype}; read them as whole numbers with nifti.read_labels")
    # From here on the image's affine decides, so that headers that differ by rounding cannot turn image and labels two ways.
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
    """The labels' voxels in the order of the grid that shape and affine say, which `of` has: flips and permutations only.

    Raises InputError, naming `name`, for another shape, and where a corner lies more than a tenth of a voxel away.
    """
    # As seen from the grid's own axes, so that oblique grids are turned as straight ones are.
    turned = reorient(Scan(labels.voxels, np.linalg.solve(affine, labels.affine)), "RAS")
    remedy = f"resample them by nearest neighbour onto the {of}'s grid"
    if turned.voxels.shape != tuple(shape):
        raise InputError(f"{name}: its {turned.voxels.shape} voxels are not the {tuple(shape)} of its {of}; {remedy}")
    away = affine_checks.farthest(turned.affine, np.eye(4), shape)
    if away > ONE_GRID:
        raise InputError(f"{name}: its corners lie up to {away:.2g} voxels away from those of its {of}; {remedy}")
    return turned.voxels


def _standardize_float(scan: Scan, spec: Spec, name: str) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "4 4"], dict[str, Any]]:
    """The standardised image before it is stored: float32 in [0, 1]."""
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
    """Another image of a head on the very grid of the one whose record is given, its intensities scaled as if it were alone."""
    spec = spec_of(record)
    turned, affine, shape = _turned(scan, spec)
    low, high, _ = _range(_resample(turned.voxels, turned.affine, affine, shape, order=1), spec, name)
    target, target_shape = np.array(record["resampled_affine"]), tuple(record["resampled_shape"])
    matrix = np.linalg.solve(turned.affine, target)
    matrix[np.abs(matrix) < 1e-9] = 0
    seen = np.ones(turned.voxels.shape, np.uint8)
    seen = ndimage.affine_transform(seen, matrix, output_shape=target_shape, order=0, mode="grid-constant", cval=0).astype(bool)
    volumes = [abs(np.linalg.det(a[:3, :3])) * np.prod(n) for a, n in ((target, target_shape), (turned.affine, turned.voxels.shape))]
    shared = np.count_nonzero(seen) * abs(np.linalg.det(target[:3, :3])) / min(volumes)
    if shared < SHARED:
        raise InputError(f"{name}: shares only {shared:.0%} of its field of view with {first}; register the two first, by their headers")
    voxels = _resample(turned.voxels, turned.affine, target, target_shape, order=1)
    return _stored(_window(np.where(seen, voxels, np.float32(low)), record["start"], spec.size, low, high), spec)


def _turned(scan: Scan, spec: Spec) -> tuple[Scan, Float[np.ndarray, "4 4"], tuple[int, ...]]:
    """The scan's axes as the spec has them, smoothed for its spacing; and the affine and shape that it has at this spacing."""
    turned = reorient(scan, spec.orientation)
    affine, shape = _resampled_grid(turned.affine, turned.voxels.shape, spec.spacing)
    voxels = turned.voxels.astype(np.float32, copy=False)
    if spec.antialias_above is not None:
        voxels = _smooth_for(voxels, np.diag(np.linalg.solve(turned.affine, affine))[:3], spec.antialias_above)
    return Scan(voxels, turned.affine), affine, shape


def _range(voxels: Float[np.ndarray, "x y z"], spec: Spec, name: str) -> tuple[float, float, Bool[np.ndarray, "x y z"]]:
    """What becomes 0 and what becomes 1, and which voxels the window is placed on."""
    if spec.percentiles_over == "all":
        low, high = (float(q) for q in np.percentile(voxels, spec.percentiles))
        _refuse_flat(low, high, spec, name)
        return low, high, voxels > np.float32(low)
    foreground, low = _foreground(voxels, spec, name)
    high = float(np.percentile(voxels[foreground], spec.percentiles[1]))
    _refuse_flat(low, high, spec, name)
    return low, high, foreground


def _window(
    voxels: Float[np.ndarray, "x y z"], start: Sequence[int], size: Sequence[int], low: float, high: float
) -> Float[np.ndarray, "x2 y2 z2"]:
    """The window of `size` voxels that begins at `start`, from `low` to `high` scaled to [0, 1] and clipped."""
    # Padding comes after scaling: outside the scan is 0, not what a raw 0 would be scaled to.
    image = np.zeros(size, np.float32)
    inner, outer = _overlap(start, voxels.shape, size)
    image[inner] = np.clip((voxels[outer] - np.float32(low)) / (np.float32(high) - np.float32(low)), 0, 1)
    return image


def _stored(image: Float[np.ndarray, "x y z"], spec: Spec) -> Shaped[np.ndarray, "x y z"]:
    return (np.rint(image * np.float32(255)) if spec.dtype == "uint8" else image).astype(spec.dtype)


def _refuse_flat(low: float, high: float, spec: Spec, name: str) -> None:
    if high > low:  # false of NaN too
        return
    below, above = (f"{q:g}th percentile" for q in spec.percentiles)
    remedy = "check that it is a head on a dark background"
    if spec.anchor == "box":
        remedy += "; the default standardisation bears a small head"
    raise InputError(f"{name}: no contrast to scale, its {below} of intensity is {low:g} and the {above} {high:g}; {remedy}")


def _shift(start: Sequence[int]) -> Float[np.ndarray, "4 4"]:
    matrix = np.eye(4)
    matrix[:3, 3] = start
    return matrix


def _resampled_grid(
    affine: Float[np.ndarray, "4 4"], shape: Sequence[int], spacing: float
) -> tuple[Float[np.ndarray, "4 4"], tuple[int, ...]]:
    """Affine and shape at an isotropic spacing: the axes keep their directions, made orthogonal (MONAI's Spacing with its defaults).

    The first voxel keeps its place, n voxels at spacing s become round((n−1)·s/spacing + 1). Where the source axes are not exactly
    orthogonal (float32 headers of oblique scans are not) no corner is the first one, and voxel shape/2 keeps its place instead.
    """
    rotation, triangle = np.linalg.qr(affine[:3, :3])
    rotation = rotation * np.sign(np.diag(triangle))
    source = affine_checks.size(affine)
    target = np.where(np.abs(source - spacing) <= NEAR, source, spacing)
    new = np.eye(4)
    new[:3, :3] = rotation * target
    corners = (np.linalg.solve(new, affine) @ affine_checks.corners(shape))[:3]
    new_shape = np.round(np.ptp(corners, axis=1) + 1.0)
    # MONAI takes whichever corner is smallest in every axis; with axes that keep their directions only the first can be.
    if np.all(np.abs(np.min(corners - corners[:, :1], axis=1)) <= 1e-8):
        new[:3, 3] = affine[:3, 3]
    else:
        new[:3, 3] = affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3] - new[:3, :3] @ (new_shape / 2)
    new_shape = tuple(int(n) for n in new_shape)
    same = np.allclose(affine, new, rtol=1e-5, atol=NEAR) or np.allclose(np.linalg.solve(affine, new), np.eye(4), rtol=1e-5, atol=NEAR)
    return (affine, new_shape) if same and new_shape == tuple(shape) else (new, new_shape)


def _smooth_for(voxels: Float[np.ndarray, "x y z"], steps: Float[np.ndarray, "3"], above: float) -> Float[np.ndarray, "x y z"]:
    """Smooth the axes whose step, in source voxels, exceeds `above`, so that linear interpolation does not skip voxels.

    A voxel's point spread is taken as a Gaussian of its own width at half height; what turns the source's into the target's is a Gaussian
    of the difference of variances, σ = √(step² − 1) / 2.355 source voxels (Cardoso et al., MICCAI 2015, scale factor point spread).
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
    """Voxels on another grid, linear (order 1) or nearest (order 0), the border continued outwards."""
    matrix = np.linalg.solve(affine, new_affine)
    across = matrix[:3, :3] - np.diag(np.diag(matrix)[:3])
    if np.any(np.abs(across) @ np.array(new_shape) > NEAR):  # a sheared source: its axes are not the target's
        return ndimage.affine_transform(voxels, matrix, output_shape=tuple(new_shape), order=order, mode="nearest", prefilter=False)
    offset = matrix[:3, 3] + across @ ((np.array(new_shape) - 1) / 2)
    # Parallel axes: three passes along one axis each, 5 times faster than the general transform; shrinking axes first.
    for axis in np.argsort(np.array(new_shape) / np.array(voxels.shape)):
        at = matrix[axis, axis] * np.arange(new_shape[axis]) + offset[axis]
        voxels = along_axis(voxels, at, int(axis), order)
    return voxels


def along_axis(voxels: Shaped[np.ndarray, "x y z"], at: Float[np.ndarray, "n"], axis: int, order: int) -> Shaped[np.ndarray, "x2 y2 z2"]:
    """Voxels at the (fractional) indices `at` of one axis, linear (order 1) or nearest (order 0), the border continued outwards."""
    last = voxels.shape[axis] - 1
    at = np.clip(np.round(at, 9), 0, last)  # rounding error must not decide which of two equally near voxels is taken
    if len(at) == last + 1 and np.allclose(at, np.arange(last + 1), rtol=0, atol=1e-6):
        return voxels
    if order == 0:
        return voxels.take(np.rint(at).astype(int), axis)
    lower = np.minimum(np.floor(at).astype(int), max(last - 1, 0))
    weight = (at - lower).astype(voxels.dtype).reshape([-1 if k == axis else 1 for k in range(3)])
    low = voxels.take(lower, axis)
    # a + w·(b − a) and not (1 − w)·a + w·b: a constant background stays exactly constant, which the percentiles and the box rely on.
    step = voxels.take(np.minimum(lower + 1, last), axis)
    step -= low
    step *= weight
    low += step
    return low


def _box(mask: Bool[np.ndarray, "x y z"]) -> list[tuple[int, int]]:
    """First index and one past the last of the true voxels, for each axis. There must be one."""
    spans = []
    for axis in range(3):
        (where,) = np.nonzero(mask.any(tuple(k for k in range(3) if k != axis)))
        spans.append((int(where[0]), int(where[-1]) + 1))
    return spans


def _start_on_box(box: list[tuple[int, int]], size: tuple[int, int, int]) -> tuple[int, int, int]:
    """First voxel of the window: the box grown evenly to a multiple of size (the odd voxel goes to the high end), then its middle."""
    starts = []
    for (first, end), n in zip(box, size, strict=True):
        grown = -(-(end - first) // n) * n
        starts.append(first - (grown - (end - first)) // 2 + grown // 2 - n // 2)
    return (starts[0], starts[1], starts[2])


def _foreground(voxels: Float[np.ndarray, "x y z"], spec: Spec, name: str) -> tuple[Bool[np.ndarray, "x y z"], float]:
    """The head, and the background's level: BET's robust threshold (Smith 2002, section 2.2), its largest connected part.

    t = t2 + 0.1·(t98 − t2). Connectedness is judged on blocks of about 4 mm, where noise has averaged out and labelling takes milliseconds.
    """
    t2, t98 = (float(q) for q in np.percentile(voxels, [spec.percentiles[0], 98]))
    threshold = np.float32(t2 + 0.1 * (t98 - t2))
    k = max(1, round(FOREGROUND_MM / spec.spacing))
    padding = [(0, -n % k) for n in voxels.shape]
    padded = np.pad(voxels, padding, mode="edge") if np.any(padding) else voxels
    x, y, z = (n // k for n in padded.shape)
    blocks = padded.reshape(x, k, y, k, z, k).mean((1, 3, 5))
    parts, count = ndimage.label(blocks > threshold)
    if count == 0:
        raise InputError(f"{name}: no foreground above its background of {t2:g}; check that it is an image of a head and not empty")
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    near = largest.repeat(k, 0).repeat(k, 1).repeat(k, 2)[: voxels.shape[0], : voxels.shape[1], : voxels.shape[2]]
    head = near & (voxels > threshold)
    if not head.any():
        raise InputError(f"{name}: no foreground above its background of {t2:g}; check that it is an image of a head and not empty")
    return head, t2


def _start_on_crown(head: Bool[np.ndarray, "x y z"], spec: Spec) -> tuple[int, int, int]:
    """First voxel of the window: centred across, and between forehead and occiput; up and down on all of the head, or from the vertex."""
    letters = spec.orientation
    up = next(k for k, letter in enumerate(letters) if letter in "SI")
    first, end = _box(head)[up]
    high, wide = (_box(_under_vertex(head, up, letters[up], first, end, mm / spec.spacing)) for mm in (FOREHEAD_MM, OCCIPUT_MM))
    starts = []
    for k, n in enumerate(spec.size):
        low_end, high_end = wide[k]
        if letters[k] == "A":
            high_end = high[k][1]
        elif letters[k] == "P":
            low_end = high[k][0]
        elif k == up:
            low_end, high_end = first, end
        start = low_end - (n - (high_end - low_end)) // 2
        if k == up and end - first > n:
            start = end - n if letters[up] == "S" else first
        starts.append(start)
    return (starts[0], starts[1], starts[2])


def _under_vertex(
    head: Bool[np.ndarray, "x y z"], up: int, letter: str, first: int, end: int, depth: float
) -> Bool[np.ndarray, "x2 y2 z2"]:
    """The head down to `depth` voxels under its vertex, the axes across unchanged."""
    n = max(1, round(depth))
    slices = [slice(None)] * 3
    slices[up] = slice(max(end - n, 0), end) if letter == "S" else slice(first, first + n)
    return head[tuple(slices)]


def _overlap(start: Sequence[int], shape: Sequence[int], size: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window of `size` voxels that begins at `start` meets a volume of `shape`: slices of the window, slices of the volume."""
    inner = tuple(slice(max(-s, 0), max(min(n - s, m), 0)) for s, n, m in zip(start, shape, size, strict=True))
    outer = tuple(slice(max(s, 0), max(min(s + m, n), 0)) for s, n, m in zip(start, shape, size, strict=True))
    return inner, outer


def _smallest_integer(labels: Integer[np.ndarray, "..."]) -> np.dtype:
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    return np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high))
