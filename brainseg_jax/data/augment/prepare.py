"""Augmentation inside the compiled step, on the device, pure in (key, batch), with the changes of spatial.py and intensity.py.

Each change has its own chance for each sample, and is computed only where it happens. Random draws depend on a sample's index in the
global batch, so they do not depend on its sharding; each device augments its own samples, one after the other.

If crops may be deformed, a sample arrives as a patch, the crop with its surroundings, so that a rotated crop shows more of the head at its
corners instead of zeros (as in nnU-Net).
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, Shaped
from ml_collections import ConfigDict

from brainseg_jax.data.augment import intensity, spatial
from brainseg_jax.data.augment.spatial import Image, Labels, Place
from brainseg_jax.data.preprocess import spec
from brainseg_jax.data.synthesis.generator import Generator
from brainseg_jax.parallel.sharding import per_device

Batch = dict[str, jax.Array]
MAKING = 1000  # the random stream of synthetic scans; small numbers give, by `fold_in`, the keys that `split` gives to the changes
Change = Callable[[jax.Array, Image, Labels], tuple[Image, Labels]]  # of one sample: (key, image, labels or None)


def enlarged_crop(config: ConfigDict) -> tuple[int, int, int]:
    """The size in voxels of the patch for a training crop: the crop and all that a deformation may move into it."""
    c, mm = config.augment, config.data.spacing
    limits = ((0.0, 0.0, 0.0),) * 4
    if c.affine.chance:
        limits = c.affine.rotation, c.affine.scaling, c.affine.shear, in_voxels(c.affine.translation, mm)
    displacement = sum(most for _, most in displacement_scales(c.elastic, mm)) if c.elastic.chance else 0.0
    margin = spatial.reach(config.data.crop, *limits, displacement)
    return tuple(min(n + 2 * m, size) for n, m, size in zip(config.data.crop, margin, config.data.size, strict=True))


def as_float(image: Shaped[jax.Array, "*b x y z c"]) -> Float[jax.Array, "*b x y z c"]:
    """Stored intensities as float32 in [0, 1]; uint8 holds round(255·value)."""
    return image.astype(jnp.float32) / (255.0 if image.dtype == jnp.uint8 else 1.0)


def prepare_train(
    config: ConfigDict, swap: Integer[np.ndarray, "k"] | None = None, generator: Generator | None = None
) -> Callable[[jax.Array, Batch], Batch]:
    """The preparation of training batches: `(key, batch) → batch`, image and label changed alike.

    Images and labels larger than the crop are patches, in which the crop begins at the batch's `place` [b 3].
    swap: each class's partner on the other side, or itself; required to flip batches with labels.
    generator: synthesises scans from labels, which are then classes of its tissues; `labels_only` [b] marks samples without an image.
    """
    c = config.augment
    deform = deformation(c.affine, c.elastic, config.data.spacing, tuple(config.data.crop))
    changes = augmentations(config, swap)

    def augment(sample: tuple[jax.Array, jax.Array, jax.Array | None, Place, jax.Array | None]) -> tuple[Image, Labels]:
        key, image, labels, place, labels_only = sample
        deform_key, *change_keys = jax.random.split(key, 1 + len(changes))
        if generator:
            # Separate random streams, so that synthesis does not change the augmentation of real scans.
            synthesis_keys = jax.random.split(jax.random.fold_in(key, MAKING))
            appearance = generator.appearance(synthesis_keys[0], labels_only)
            image = generator.with_means(appearance, as_float(image), labels)
        image, labels = deform(deform_key, image, labels, place) if deform else (as_float(image), labels)
        if generator:
            image, labels = generator.finish(synthesis_keys[1], appearance, image, labels)
        for change, change_key in zip(changes, change_keys, strict=True):
            image, labels = change(change_key, image, labels) if change else (image, labels)
        return image, labels

    def prepare(key: jax.Array, batch: Batch) -> Batch:
        image, labels, place, labels_only = batch["image"], batch.get("label"), batch.get("place"), batch.get("labels_only")
        if deform or any(changes) or generator:
            # 0 to 3 are the streams of `intensity`.
            keys = jax.random.split(jax.random.fold_in(key, 4), len(image))
            image, labels = per_device(lambda *samples: jax.lax.map(augment, samples))(keys, image, labels, place, labels_only)
        else:
            image = as_float(image)
        image = intensity.intensity(key, image, c.scale, c.shift, c.chance) if c.chance else image
        rest = {name: part for name, part in batch.items() if name not in ("place", "labels_only")}
        return rest | {"image": image} | ({} if labels is None else {"label": labels})

    return prepare


def prepare_eval(key: jax.Array, batch: Batch) -> Batch:
    """The preparation of validation batches: conversion to float only."""
    return batch | {"image": as_float(batch["image"])}


def augmentations(config: ConfigDict, swap: Integer[np.ndarray, "k"] | None) -> tuple[Change | None, ...]:
    """All changes of a crop, None where the chance is 0, in the order of their origin: head, contrast, coil, scanner, file.

    Blur by the scanner's resolution precedes noise, and thick slices are interpolated with their noise.
    """
    c, mm = config.augment, config.data.spacing
    orientation = spec(config.data.spec).orientation

    def mirror(axis: int) -> Change | None:
        chance = c.mirror.sides if orientation[axis] in "LR" else c.mirror.others
        return sometimes(chance, lambda key, image, labels: spatial.flip(image, labels, axis, orientation, swap))

    def intensities(chance: float, change: Callable[..., Image], *limits: float) -> Change | None:
        return sometimes(chance, lambda key, image, labels: (change(key, image, *limits), labels))

    return (
        *(mirror(axis) for axis in range(3)),
        intensities(c.contrast.chance, intensity.gamma, c.contrast.gamma),
        intensities(c.contrast.chance, intensity.curve, c.contrast.curve),
        intensities(c.bias.chance, intensity.bias, c.bias.log, c.bias.nodes / mm),
        intensities(c.blur.chance, intensity.blur, c.blur.mm / mm),
        intensities(c.noise.chance, intensity.NOISES[c.noise.kind], c.noise.sigma),
        intensities(c.low_resolution.chance, intensity.low_resolution, c.low_resolution.mm / mm),
        sometimes(c.field_of_view.chance, partial(spatial.cut_field_of_view, share=c.field_of_view.share)),
    )


def deformation(
    affine: ConfigDict, elastic: ConfigDict, mm: float, crop: tuple[int, int, int]
) -> Callable[[jax.Array, jax.Array, jax.Array | None, Place], tuple[Image, Labels]] | None:
    """The affine and elastic deformations, each with its own chance, as one resampling of a patch about the middle of the crop at `place`.

    Returns crops, deformed or not; without a place the patch is the crop. A patch is converted to float only if it is resampled.
    """

    def change(key: jax.Array, image: jax.Array, labels: jax.Array | None, place: Place) -> tuple[Image, Labels]:
        keys = jax.random.split(key, 4)
        with_affine, with_elastic = jax.random.bernoulli(keys[0], affine.chance), jax.random.bernoulli(keys[1], elastic.chance)
        plain, plain_labels = spatial.box(image, labels, place, crop)
        plain = as_float(plain)

        def deformed(image: jax.Array, labels: jax.Array | None) -> tuple[Image, Labels]:
            limits = affine.rotation, affine.scaling, affine.shear, in_voxels(affine.translation, mm)
            matrix, shift = spatial.random_affine(keys[2], with_affine, *limits)
            bend = spatial.random_displacement(keys[3], with_elastic, plain, displacement_scales(elastic, mm))
            return spatial.resample(as_float(image), labels, spatial.coordinates(matrix, shift if place is None else shift + place, bend))

        return jax.lax.cond(with_affine | with_elastic, deformed, lambda *_: (plain, plain_labels), image, labels)

    return change if affine.chance or elastic.chance else None


def displacement_scales(elastic: ConfigDict, mm: float) -> list[tuple[float, float]]:
    """The scales of the elastic deformation in voxels, for a voxel size in mm."""
    return spatial.scales(elastic.nodes / mm, elastic.mm / mm, elastic.octaves)


def in_voxels(lengths: Sequence[float | int], mm: float) -> list[float]:
    """Lengths in mm as voxels, for a voxel size in mm."""
    return [length / mm for length in lengths]


def sometimes(chance: float, change: Change) -> Change | None:
    """The change with this chance, computed only when it happens; None if the chance is 0."""

    def perhaps(key: jax.Array, image: Image, labels: Labels) -> tuple[Image, Labels]:
        whether, how = jax.random.split(key)
        return jax.lax.cond(jax.random.bernoulli(whether, chance), partial(change, how), lambda *sample: sample, image, labels)

    return perhaps if chance else None
