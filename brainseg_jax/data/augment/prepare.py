"""Augmentation inside the compiled step, on the device, pure in (key, batch): which changes of deform.py and appearance.py happen to whom.

Each happens to each sample by its own chance, and what does not happen to a sample is not computed. Draws go by a sample's place in the
whole batch, so they are the same however the batch lies on devices, each of which changes its own samples, one after the other.

Where crops may be deformed, a sample arrives as a patch, the crop with what lies around it, so that a turned crop shows more of the head
at its corners and not the zeros of a box that was cut before (as nnU-Net does it).
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
MAKING = 1000  # number of the stream of made scans; the first ones, `fold_in` gives the keys that `split` gives, are those of the changes
Change = Callable[[jax.Array, Image, Labels], tuple[Image, Labels]]  # of one sample: (key, image, labels or None)


def enlarged_crop(config: ConfigDict) -> tuple[int, int, int]:
    """Voxels of the box of a volume that a training crop is made from: the crop and all that a deformation may move into it."""
    c, mm = config.augment, config.data.spacing
    still = (0.0, 0.0, 0.0)
    limits = (c.affine.rotation, c.affine.scaling, c.affine.shear, in_voxels(c.affine.translation, mm)) if c.affine.chance else (still,) * 4
    margin = spatial.reach(
        config.data.crop, *limits, sum(most for _, most in displacement_scales(c.elastic, mm)) if c.elastic.chance else 0.0
    )
    return tuple(min(n + 2 * m, size) for n, m, size in zip(config.data.crop, margin, config.data.size, strict=True))


def as_float(image: Shaped[jax.Array, "*b x y z c"]) -> Float[jax.Array, "*b x y z c"]:
    """Stored intensities as float32 in [0, 1]; uint8 holds round(255·value)."""
    return image.astype(jnp.float32) / (255.0 if image.dtype == jnp.uint8 else 1.0)


def prepare_train(
    config: ConfigDict, swap: Integer[np.ndarray, "k"] | None = None, generator: Generator | None = None
) -> Callable[[jax.Array, Batch], Batch]:
    """What a training batch undergoes before the objective: `(key, batch) → batch`; a label it may have is changed with the image.

    Images and labels that are larger than the crop are patches; then the batch's `place` [b 3] says where in each the crop begins.
    swap: for each class its partner on the other side, or itself; batches with labels cannot be mirrored without it.
    generator: what makes scans of labels, which are its tissues' classes then; `labels_only` [b] says of which there is no image.
    """
    c = config.augment
    moved = deformation(c.affine, c.elastic, config.data.spacing, tuple(config.data.crop))
    steps = augmentations(config, swap)

    def one(sample: tuple[jax.Array, jax.Array, jax.Array | None, Place, jax.Array | None]) -> tuple[Image, Labels]:
        key, image, labels, place, labels_only = sample
        first, *streams = jax.random.split(key, 1 + len(steps))
        if generator:
            # Streams of its own, so that real scans are augmented as they would be without any that are made.
            making = jax.random.split(jax.random.fold_in(key, MAKING))
            look = generator.appearance(making[0], labels_only)
            image = generator.with_means(look, as_float(image), labels)
        image, labels = moved(first, image, labels, place) if moved else (as_float(image), labels)
        if generator:
            image, labels = generator.finish(making[1], look, image, labels)
        for step, stream in zip(steps, streams, strict=True):
            image, labels = step(stream, image, labels) if step else (image, labels)
        return image, labels

    def prepare(key: jax.Array, batch: Batch) -> Batch:
        image, labels, place, labels_only = batch["image"], batch.get("label"), batch.get("place"), batch.get("labels_only")
        if moved or any(steps) or generator:
            # 0 to 3 would be the streams of `intensity`.
            keys = jax.random.split(jax.random.fold_in(key, 4), len(image))
            image, labels = per_device(lambda *samples: jax.lax.map(one, samples))(keys, image, labels, place, labels_only)
        else:
            image = as_float(image)
        image = intensity.intensity(key, image, c.scale, c.shift, c.chance) if c.chance else image
        rest = {name: part for name, part in batch.items() if name not in ("place", "labels_only")}
        return rest | {"image": image} | ({} if labels is None else {"label": labels})

    return prepare


def prepare_eval(key: jax.Array, batch: Batch) -> Batch:
    """What a validation batch undergoes: nothing but the change to float."""
    return batch | {"image": as_float(batch["image"])}


def augmentations(config: ConfigDict, swap: Integer[np.ndarray, "k"] | None) -> tuple[Change | None, ...]:
    """Every change of a crop there is, None where its chance is 0, in the order in which they arise: head, contrast, coil, scanner, file.

    A scanner's resolution limits first what is there, then comes noise, and thick slices are interpolated with the noise they have.
    """
    c, mm = config.augment, config.data.spacing
    orientation = spec(config.data.spec).orientation

    def mirror(axis: int) -> Change | None:
        chance = c.mirror.sides if orientation[axis] in "LR" else c.mirror.others
        return sometimes(chance, lambda key, image, labels: spatial.flip(image, labels, axis, orientation, swap))

    def look(chance: float, change: Callable[..., Image], *limits: float) -> Change | None:
        return sometimes(chance, lambda key, image, labels: (change(key, image, *limits), labels))

    return (
        *(mirror(axis) for axis in range(3)),
        look(c.contrast.chance, intensity.gamma, c.contrast.gamma),
        look(c.contrast.chance, intensity.curve, c.contrast.curve),
        look(c.bias.chance, intensity.bias, c.bias.log, c.bias.nodes / mm),
        look(c.blur.chance, intensity.blur, c.blur.mm / mm),
        look(c.noise.chance, intensity.NOISES[c.noise.kind], c.noise.sigma),
        look(c.low_resolution.chance, intensity.low_resolution, c.low_resolution.mm / mm),
        sometimes(c.field_of_view.chance, partial(spatial.cut_field_of_view, share=c.field_of_view.share)),
    )


def deformation(
    affine: ConfigDict, elastic: ConfigDict, mm: float, crop: tuple[int, int, int]
) -> Callable[[jax.Array, jax.Array, jax.Array | None, Place], tuple[Image, Labels]] | None:
    """Both deformations, each by its own chance, as one resampling of a patch about the middle of the crop that begins at `place` in it.

    Gives crops, deformed or not; without a place the patch is the crop. Only what is used of a patch becomes float.
    """

    def change(key: jax.Array, image: jax.Array, labels: jax.Array | None, place: Place) -> tuple[Image, Labels]:
        keys = jax.random.split(key, 4)
        turned, bent = jax.random.bernoulli(keys[0], affine.chance), jax.random.bernoulli(keys[1], elastic.chance)
        still, still_labels = spatial.box(image, labels, place, crop)
        still = as_float(still)

        def both(image: jax.Array, labels: jax.Array | None) -> tuple[Image, Labels]:
            limits = affine.rotation, affine.scaling, affine.shear, in_voxels(affine.translation, mm)
            matrix, shift = spatial.random_affine(keys[2], turned, *limits)
            bend = spatial.random_displacement(keys[3], bent, still, displacement_scales(elastic, mm))
            return spatial.resample(as_float(image), labels, spatial.coordinates(matrix, shift if place is None else shift + place, bend))

        return jax.lax.cond(turned | bent, both, lambda *_: (still, still_labels), image, labels)

    return change if affine.chance or elastic.chance else None


def displacement_scales(elastic: ConfigDict, mm: float) -> list[tuple[float, float]]:
    """The scales of the elastic deformation, in voxels of so many mm."""
    return spatial.scales(elastic.nodes / mm, elastic.mm / mm, elastic.octaves)


def in_voxels(lengths: Sequence[float | int], mm: float) -> list[float]:
    """Millimetres along each axis as voxels of so many mm."""
    return [length / mm for length in lengths]


def sometimes(chance: float, change: Change) -> Change | None:
    """The change with this chance, computed only where it happens; None if the chance is 0."""

    def perhaps(key: jax.Array, image: Image, labels: Labels) -> tuple[Image, Labels]:
        whether, how = jax.random.split(key)
        return jax.lax.cond(jax.random.bernoulli(whether, chance), partial(change, how), lambda *sample: sample, image, labels)

    return perhaps if chance else None
