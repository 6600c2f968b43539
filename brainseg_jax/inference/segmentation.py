"""From a standardised scan to labels in native space: probabilities by sliding windows, resampled, then argmax.

Probabilities are resampled linearly, rather than labels by nearest neighbour: label borders are smooth on a finer grid than the networks',
and on the same grid the labels are exactly theirs.
"""

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

ONE = 255  # the byte for probability 1


class SoftSegmentation(NamedTuple):
    """The ensemble's probabilities on the standardised grid.

    `soft`: the probability of each class, background first, as bytes: rint(254 p), plus 1 for the likeliest class, so that rounding makes
    no ties. `volumes`: ml of each class, by the sum of its probability. `entropy`: −Σ p ln p in nats, the mean over foreground voxels, NaN
    without any.
    """

    soft: UInt8[np.ndarray, "k x y z"]
    volumes: Float[np.ndarray, "k"]
    entropy: float


class Segmented(NamedTuple):
    """`classes`: class numbers on the scan's own grid. `ml`: the volume of each class by voxels. `found`: the soft segmentation."""

    classes: UInt[np.ndarray, "x y z"]
    ml: Float[np.ndarray, "k"]
    found: SoftSegmentation


def prepare(by: Predictor, scans: Sequence[Scan], names: Sequence[str]) -> Standardized:
    """The standardised images of a subject. Raises InputError, starting with its name, for one that cannot be an MRI of a head."""
    by.check_images(len(scans), names[0])
    for scan, name in zip(scans, names, strict=True):
        input_checks.check_head_scan(scan, name)
    return standardize_all(scans, by.spec, names)


def segment(by: Predictor, ready: Standardized) -> Segmented:
    """The labels of a standardised scan on the scan's own grid, even if empty (see `input_checks.check_not_empty`)."""
    soft = segment_grid(by, ready)
    classes = native_labels(by, soft, ready)
    return Segmented(classes, voxel_volumes(classes, by.table, np.array(ready.record["source_affine"])), soft)


def compile_ahead(by: Predictor) -> None:
    """Compiles the networks, which `segment` would otherwise do at the first scan."""
    like = jax.ShapeDtypeStruct((*by.spec.size, by.channels), np.float32)
    sliding_window.compile_ahead(by.models, like, overlap=by.overlap, blend=by.blend, flip=by.flip)


def segment_grid(by: Predictor, ready: Standardized) -> SoftSegmentation:
    """The ensemble's soft segmentation of a standardised scan."""
    return segment_grid_each([by], ready)[0]


def segment_grid_each(groupings: Sequence[Predictor], ready: Standardized) -> list[SoftSegmentation]:
    """The soft segmentations of one ensemble for several groupings (`Predictor.grouped`), in one pass of the networks."""
    by = groupings[0]
    volume = as_float(jnp.asarray(ready.image).reshape(1, *ready.image.shape[:3], -1))[0]
    soft = [np.empty((len(grouping.table.structures) + 1, *ready.image.shape[:3]), np.uint8) for grouping in groupings]
    entropies: list[list[np.ndarray]] = [[] for _ in groupings]

    def keep(rows: slice, probabilities: jax.Array) -> None:
        for grouping, maps, sums in zip(groupings, soft, entropies, strict=True):
            grouped = probabilities if grouping.groups is None else probabilities @ grouping.groups
            maps[:, rows] = np.moveaxis(np.asarray(_in_bytes(grouped)), -1, 0)
            sums.append(np.asarray(_entropy(grouped)))

    whole = sliding_window.segment(by.models, volume, overlap=by.overlap, blend=by.blend, flip=by.flip, each=keep)
    ml, results = abs(np.linalg.det(ready.affine[:3, :3])) / 1000, []
    for grouping, maps, sums in zip(groupings, soft, entropies, strict=True):
        nats, voxels = np.sum(sums, axis=0, dtype=np.float64)
        volumes = whole.volumes if grouping.groups is None else whole.volumes @ grouping.groups
        results.append(SoftSegmentation(maps, volumes * ml, float(nats / voxels) if voxels else float("nan")))
    return results


def native_labels(by: Predictor, found: SoftSegmentation, ready: Standardized) -> UInt[np.ndarray, "x y z"]:
    """The classes on the scan's own grid, with small components relabelled unless the predictor keeps them."""
    classes = on_scan(found, ready)
    if not by.keep_small_components:
        relabel_small_components(classes, by.table)
    return classes


def on_scan(found: SoftSegmentation, ready: Standardized) -> UInt[np.ndarray, "x y z"]:
    """The likeliest class of every voxel of the scan's own grid, 0 outside the standardised window."""
    transform, classes = native_space.grid_transform(ready), len(found.soft)
    # To be the likeliest between eight voxels, a class needs in one of them at least 1/k, and an eighth of the likeliest class's value in
    # each of them: so most classes are resampled in a small box only.
    least = ndimage.minimum_filter(found.soft.max(axis=0), 3, mode="constant") // 8
    least = np.maximum(np.maximum(least, (ONE - 1) // classes), 1) - 1
    boxes = [native_space.bounding_box(soft > least) for soft in found.soft[1:]]
    present = [box for box in boxes if box]
    labels = np.zeros(ready.record["source_shape"], np.min_scalar_type(classes - 1))
    if not present:
        return labels
    best = np.zeros(labels.shape, np.float32)
    whole = tuple(slice(min(box[axis].start for box in present), max(box[axis].stop for box in present)) for axis in range(3))
    for number, box in enumerate([whole, *boxes]):
        if box:
            part, values = native_space.resample_to_native(found.soft[number], box, transform)
            np.copyto(labels[part], labels.dtype.type(number), where=values > best[part])
            np.maximum(best[part], values, out=best[part])
    return labels


def soft_maps(found: SoftSegmentation, ready: Standardized) -> Iterator[UInt8[np.ndarray, "x y z"]]:
    """Yields the probability of each class on the scan's own grid, as bytes (255 for 1), background first."""
    transform = native_space.grid_transform(ready)
    for number, soft in enumerate(found.soft):
        # Outside the standardised window there is background.
        out = np.full(ready.record["source_shape"], 0 if number else ONE, np.uint8, order="F")  # the order of files
        if box := native_space.bounding_box(soft > 0) if number else tuple(slice(0, n) for n in soft.shape):
            part, values = native_space.resample_to_native(soft, box, transform)
            out[part] = np.rint(values)
        yield out


def voxel_volumes(classes: UInt[np.ndarray, "x y z"], table: Table, affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "k"]:
    """The volume of each class in ml, by its voxels."""
    return np.bincount(classes.ravel(), minlength=len(table.structures) + 1) * abs(np.linalg.det(affine[:3, :3])) / 1000


@jax.jit
def _in_bytes(probabilities: Float[jax.Array, "r y z k"]) -> UInt8[jax.Array, "r y z k"]:
    winner = jax.nn.one_hot(jnp.argmax(probabilities, axis=-1), probabilities.shape[-1])
    return (jnp.rint((ONE - 1) * probabilities) + winner).astype(jnp.uint8)


@jax.jit
def _entropy(probabilities: Float[jax.Array, "r y z k"]) -> Float[jax.Array, "2"]:
    """The sum of the entropies of foreground voxels, and their number."""
    inside = probabilities[..., 0] < jnp.max(probabilities, axis=-1)
    # jax.scipy.special.entr takes twice as long; the lower bound makes 0 · ln 0 = 0.
    nats = -jnp.sum(probabilities * jnp.log(jnp.maximum(probabilities, 1e-30)), axis=-1)
    return jnp.stack([jnp.sum(nats, where=inside), jnp.sum(inside, dtype=nats.dtype)])
