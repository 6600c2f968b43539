"""Augmentation inside the compiled step, on the device, pure in (key, batch): which changes of deform.py and appearance.py happen to whom.

Each happens to each sample by its own chance, and what does not happen to a sample is not computed. Draws go by a sample's place in the
whole batch, so they are the same however the batch lies on devices, each of which changes its own samples, one after the other.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped
from ml_collections import ConfigDict

from brainseg_jax.data import appearance, deform
from brainseg_jax.data.deform import Image, Labels
from brainseg_jax.data.standardize import spec
from brainseg_jax.sharding import apart

Batch = dict[str, jax.Array]
Change = Callable[[jax.Array, Image, Labels], tuple[Image, Labels]]  # of one sample: (key, image, labels or None)


def as_float(image: Shaped[jax.Array, "b x y z c"]) -> Float[jax.Array, "b x y z c"]:
    """Stored intensities as float32 in [0, 1]; uint8 holds round(255·value)."""
    return image.astype(jnp.float32) / (255.0 if image.dtype == jnp.uint8 else 1.0)


def prepare_train(config: ConfigDict, swap: Integer[np.ndarray, "k"] | None = None) -> Callable[[jax.Array, Batch], Batch]:
    """What a training batch undergoes before the objective: `(key, batch) → batch`; a label it may have is changed with the image.

    swap: for each class its partner on the other side, or itself; batches with labels cannot be mirrored without it.
    """
    c = config.augment
    steps = changes(config, swap)

    def one(sample: tuple[jax.Array, Image, Labels]) -> tuple[Image, Labels]:
        key, image, labels = sample
        for step, stream in zip(steps, jax.random.split(key, len(steps)), strict=True):
            image, labels = step(stream, image, labels) if step else (image, labels)
        return image, labels

    def prepare(key: jax.Array, batch: Batch) -> Batch:
        image, labels = as_float(batch["image"]), batch.get("label")
        if any(steps):
            # 0 to 3 would be the streams of `intensity`.
            keys = jax.random.split(jax.random.fold_in(key, 4), len(image))
            image, labels = apart(lambda *samples: jax.lax.map(one, samples))(keys, image, labels)
        image = appearance.intensity(key, image, c.scale, c.shift, c.chance) if c.chance else image
        return batch | {"image": image} | ({} if labels is None else {"label": labels})

    return prepare


def prepare_eval(key: jax.Array, batch: Batch) -> Batch:
    """What a held-out batch undergoes: nothing but the change to float."""
    return batch | {"image": as_float(batch["image"])}


def changes(config: ConfigDict, swap: Integer[np.ndarray, "k"] | None) -> tuple[Change | None, ...]:
    """Every change there is, None where its chance is 0, in the order in which they arise: head, contrast, coil, scanner, file.

    A scanner's resolution limits first what is there, then comes noise, and thick slices are interpolated with the noise they have.
    """
    c, mm = config.augment, config.data.spacing
    orientation = spec(config.data.spec).orientation

    def mirror(axis: int) -> Change | None:
        chance = c.mirror.sides if orientation[axis] in "LR" else c.mirror.others
        return sometimes(chance, lambda key, image, labels: deform.mirror(image, labels, axis, orientation, swap))

    def look(chance: float, change: Callable[..., Image], *limits: float) -> Change | None:
        return sometimes(chance, lambda key, image, labels: (change(key, image, *limits), labels))

    return (
        *(mirror(axis) for axis in range(3)),
        deformation(c.affine, c.elastic, mm),
        look(c.contrast.chance, appearance.gamma, c.contrast.gamma),
        look(c.contrast.chance, appearance.curve, c.contrast.curve),
        look(c.bias.chance, appearance.bias, c.bias.log, c.bias.nodes / mm),
        look(c.blur.chance, appearance.blur, c.blur.mm / mm),
        look(c.noise.chance, appearance.NOISES[c.noise.kind], c.noise.sigma),
        look(c.low_resolution.chance, appearance.low_resolution, c.low_resolution.mm / mm),
        sometimes(c.cut.chance, partial(deform.cut, share=c.cut.share)),
    )


def deformation(affine: ConfigDict, elastic: ConfigDict, mm: float) -> Change | None:
    """Both deformations, each by its own chance, as one resampling."""

    def change(key: jax.Array, image: Image, labels: Labels) -> tuple[Image, Labels]:
        keys = jax.random.split(key, 4)
        turned, bent = jax.random.bernoulli(keys[0], affine.chance), jax.random.bernoulli(keys[1], elastic.chance)

        def both(image: Image, labels: Labels) -> tuple[Image, Labels]:
            shift = [t / mm for t in affine.translation]
            moves = deform.random_affine(keys[2], turned, affine.rotation, affine.scaling, affine.shear, shift)
            bend = deform.random_bend(keys[3], bent, image, elastic.nodes / mm, elastic.mm / mm)
            return deform.resample(image, labels, deform.coordinates(*moves, bend))

        return if_it_happens(turned | bent, both, image, labels)

    return change if affine.chance or elastic.chance else None


def sometimes(chance: float, change: Change) -> Change | None:
    """The change with this chance; None if that is 0."""

    def perhaps(key: jax.Array, image: Image, labels: Labels) -> tuple[Image, Labels]:
        whether, how = jax.random.split(key)
        return if_it_happens(jax.random.bernoulli(whether, chance), partial(change, how), image, labels)

    return perhaps if chance else None


def if_it_happens(
    happens: Bool[jax.Array, ""], change: Callable[[Image, Labels], tuple[Image, Labels]], image: Image, labels: Labels
) -> tuple[Image, Labels]:
    """Changed if it happens; else nothing is computed."""
    return jax.lax.cond(happens, change, lambda image, labels: (image, labels), image, labels)
