"""From a standardised scan to labels in native space: soft maps by windows, resampled, and the likeliest class of each voxel.

What is resampled is every class's probability, linearly, and the likeliest is the label: borders of labels on a finer grid than the
networks' are smooth, where the nearest label would show its voxels. On a grid like the networks' it is their labels, to the voxel."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt, UInt8
from scipy import ndimage

from brainseg_jax.data.augment.prepare import as_float
from brainseg_jax.data.labels import Table
from brainseg_jax.data.nifti import Scan
from brainseg_jax.data.preprocess import Standardized, standardize_all
from brainseg_jax.inference import input_checks, native_space, sliding_window
from brainseg_jax.inference.predictor import Predictor
from brainseg_jax.inference.small_components import relabel_small_components

ONE = 255  # stands for probability 1


class SoftSegmentation(NamedTuple):
    """What networks see in a standardised scan.

    `soft`: on its grid the probability of each class, background first, in bytes: 255 stands for 1, and the likeliest class has one more
    than the others would, so that rounding makes no ties. `volumes`: ml of each class, the sum of its probability. `entropy`: −Σ p ln p in
    nats, the mean over voxels that are not background, NaN where all are.
    """

    soft: UInt8[np.ndarray, "k x y z"]
    volumes: Float[np.ndarray, "k"]
    entropy: float


class Segmented(NamedTuple):
    """`classes`: numbers of the predictor's table on the scan's own grid. `ml`: the volume of each as voxels count it. `found`: whence."""

    classes: UInt[np.ndarray, "x y z"]
    ml: Float[np.ndarray, "k"]
    found: SoftSegmentation


def prepare(by: Predictor, scans: Sequence[Scan], names: Sequence[str]) -> Standardized:
    """A subject's images as the networks take them. Raises InputError, calling them by `names`, for what cannot be MRI of a head."""
    by.check_images(len(scans), names[0])
    for scan, name in zip(scans, names, strict=True):
        input_checks.check_head_scan(scan, name)
    return standardize_all(scans, by.spec, names)


def segment(by: Predictor, ready: Standardized) -> Segmented:
    """Labels of a standardised scan on the scan's own grid, whatever they are: see `screening.refuse_empty`."""
    found = segment_grid(by, ready)
    classes = native_labels(by, found, ready)
    return Segmented(classes, voxel_volumes(classes, by.table, np.array(ready.record["source_affine"])), found)


def compile_ahead(by: Predictor) -> None:
    """Compiles the networks, which `find` would do with the first scan."""
    like = jax.ShapeDtypeStruct((*by.spec.size, by.channels), np.float32)
    sliding_window.compile_ahead(by.models, like, overlap=by.overlap, blend=by.blend, flip=by.flip)


def segment_grid(by: Predictor, ready: Standardized) -> SoftSegmentation:
    """What the networks see."""
    return segment_grid_each([by], ready)[0]


def segment_grid_each(groupings: Sequence[Predictor], ready: Standardized) -> list[SoftSegmentation]:
    """What the same networks see, grouped in several ways (`Predictor.grouped`), for one look."""
    by = groupings[0]
    volume = as_float(jnp.asarray(ready.image).reshape(1, *ready.image.shape[:3], -1))[0]
    soft = [np.empty((len(one.table.structures) + 1, *ready.image.shape[:3]), np.uint8) for one in groupings]
    unsure: list[list[np.ndarray]] = [[] for _ in groupings]

    def keep(rows: slice, probabilities: jax.Array) -> None:
        for one, maps, nats in zip(groupings, soft, unsure, strict=True):
            grouped = probabilities if one.groups is None else probabilities @ one.groups
            maps[:, rows] = np.moveaxis(np.asarray(_in_bytes(grouped)), -1, 0)
            nats.append(np.asarray(_entropy(grouped)))

    seen = sliding_window.segment(by.models, volume, overlap=by.overlap, blend=by.blend, flip=by.flip, each=keep)
    ml, found = abs(np.linalg.det(ready.affine[:3, :3])) / 1000, []
    for one, maps, nats in zip(groupings, soft, unsure, strict=True):
        total, voxels = np.sum(nats, axis=0, dtype=np.float64)
        volumes = seen.volumes if one.groups is None else seen.volumes @ one.groups
        found.append(SoftSegmentation(maps, volumes * ml, float(total / voxels) if voxels else float("nan")))
    return found


def native_labels(by: Predictor, found: SoftSegmentation, ready: Standardized) -> UInt[np.ndarray, "x y z"]:
    """The classes that a predictor gives the voxels of the scan's own grid, without small components unless it keeps them."""
    classes = on_scan(found, ready)
    if not by.keep_small_components:
        relabel_small_components(classes, by.table)
    return classes


def on_scan(found: SoftSegmentation, ready: Standardized) -> UInt[np.ndarray, "x y z"]:
    """The likeliest class of every voxel of the scan's own grid, 0 where the standardised window did not reach."""
    by, classes = native_space.grid_transform(ready), len(found.soft)
    # To be the likeliest between eight voxels, a class needs in one of them an equal share of 1, and an eighth of what the likeliest has in
    # each of them: so most classes are looked at in a small box only.
    least = ndimage.minimum_filter(found.soft.max(axis=0), 3, mode="constant") // 8
    least = np.maximum(np.maximum(least, (ONE - 1) // classes), 1) - 1
    boxes = [native_space.bounding_box(soft > least) for soft in found.soft[1:]]
    somewhere = [box for box in boxes if box]
    labels = np.zeros(ready.record["source_shape"], np.min_scalar_type(classes - 1))
    if not somewhere:
        return labels
    best = np.zeros(labels.shape, np.float32)
    whole = tuple(slice(min(b[axis].start for b in somewhere), max(b[axis].stop for b in somewhere)) for axis in range(3))
    for number, box in enumerate([whole, *boxes]):
        if box:
            part, values = native_space.resample_to_native(found.soft[number], box, by)
            np.copyto(labels[part], labels.dtype.type(number), where=values > best[part])
            np.maximum(best[part], values, out=best[part])
    return labels


def soft_maps(found: SoftSegmentation, ready: Standardized) -> Iterator[UInt8[np.ndarray, "x y z"]]:
    """The probability of each class on the scan's own grid, 255 standing for 1, background first; one at a time, since each is large."""
    by = native_space.grid_transform(ready)
    for number, soft in enumerate(found.soft):
        # Where the window did not reach there is background.
        out = np.full(ready.record["source_shape"], 0 if number else ONE, np.uint8, order="F")  # as files have it
        if box := native_space.bounding_box(soft > 0) if number else tuple(slice(0, n) for n in soft.shape):
            part, values = native_space.resample_to_native(soft, box, by)
            out[part] = np.rint(values)
        yield out


def voxel_volumes(classes: UInt[np.ndarray, "x y z"], table: Table, affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "k"]:
    """The volume of each class in ml, as voxels count it."""
    return np.bincount(classes.ravel(), minlength=len(table.structures) + 1) * abs(np.linalg.det(affine[:3, :3])) / 1000


@jax.jit
def _in_bytes(probabilities: Float[jax.Array, "r y z k"]) -> UInt8[jax.Array, "r y z k"]:
    winner = jax.nn.one_hot(jnp.argmax(probabilities, axis=-1), probabilities.shape[-1])
    return (jnp.rint((ONE - 1) * probabilities) + winner).astype(jnp.uint8)


@jax.jit
def _entropy(probabilities: Float[jax.Array, "r y z k"]) -> Float[jax.Array, "2"]:
    """The sum of the entropies of voxels that are not background, and how many they are."""
    inside = probabilities[..., 0] < jnp.max(probabilities, axis=-1)
    # As jax.scipy.special.entr, in half the time; the smallest number is for 0, whose product with its logarithm is 0.
    nats = -jnp.sum(probabilities * jnp.log(jnp.maximum(probabilities, 1e-30)), axis=-1)
    return jnp.stack([jnp.sum(nats, where=inside), jnp.sum(inside, dtype=nats.dtype)])
