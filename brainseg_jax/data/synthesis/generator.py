"""Synthesis of a scan from a label map (Billot et al. 2023, SynthSeg).

A synthetic scan begins as the mean intensities of its tissues and is deformed like a real one: interpolation of the means gives partial
volume. Then come changes on the scan's own grid: texture, lesions, skull-stripping, defacing, noise in the air. Contrast curves, bias,
resolution and noise are augmentation, for synthetic and real scans alike. All functions are for one sample, pure in (key, arrays), with
values in [0, 1] and static shapes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer
from ml_collections import ConfigDict

from brainseg_jax.data.augment.intensity import gaussian
from brainseg_jax.data.augment.random_fields import along_axes, random_array, smooth_noise
from brainseg_jax.data.labels import HEAD, Table, lookup, read_table, voxel_ids
from brainseg_jax.data.preprocess import spec
from brainseg_jax.data.synthesis.priors import Prior, read_prior

Image = Float[jax.Array, "x y z 1"]
Labels = Integer[jax.Array, "x y z"]
Mask = Bool[jax.Array, "x y z"]

# Mean standard deviation of `smooth_noise`: its coefficients' is 1/√3, and a cubic B-spline keeps 151/315 of the variance per axis.
SPREAD = (151 / 315) ** 1.5 / 3**0.5
LOW, HIGH = spec("default").percentiles  # of all voxels and of the head's; they become 0 and 1
CEREBRAL_WHITE = {2, 41}  # FreeSurfer ids
AHEAD = {"A": 1, "P": -1, "S": -1, "I": 1}  # towards the face: forwards and down


class Tissues(NamedTuple):
    """The tissue of each id of label maps, 0 (air) to k − 1, and whether it is brain, or white matter. Ids of one tissue, e.g. both sides
    of a structure, look alike in every scan."""

    of: Integer[np.ndarray, "k"]
    brain: Bool[np.ndarray, "k"]
    white: Bool[np.ndarray, "k"]

    @property
    def count(self) -> int:
        """The number of tissues."""
        return int(self.of.max()) + 1


def tissues_of(table: Table) -> Tissues:
    """The tissues of a label table's classes, background first: left and right partners share one; CSF around the brain is not brain."""
    number = {s.id: n for n, s in enumerate(table.structures, 1)}
    first = [0, *(min(number[s.id], number[s.partner]) for s in table.structures)]
    brain = [False, *(s.tissue != "other" and s.freesurfer != (24,) for s in table.structures)]
    white = [False, *(bool(CEREBRAL_WHITE & {*s.freesurfer, *s.part_of}) for s in table.structures)]
    return Tissues(np.unique(first, return_inverse=True)[1], np.array(brain), np.array(white))


def random_appearance(
    key: jax.Array, tissues: Tissues, spread: float, air: float, prior: Prior | None = None, share: float = 0.0
) -> tuple[Float[jax.Array, "t"], Float[jax.Array, "t"]]:
    """Mean and standard deviation of every tissue in one scan: uniform up to 1 and up to `spread`, or with chance `share` by the prior.

    The mean of air, the tissue of id 0, is below `air` unless it is the prior's.
    """
    keys, shape = jax.random.split(key, 5), (tissues.count,)
    means = random_array(jax.random.uniform, keys[0], shape, jnp.float32).at[tissues.of[0]].multiply(air)
    spreads = random_array(jax.random.uniform, keys[1], shape, jnp.float32) * spread
    if prior is None:
        return means, spreads

    def draw(key: jax.Array, moments: Float[np.ndarray, "2 t"]) -> Float[jax.Array, "t"]:
        return jnp.clip(moments[0] + moments[1] * random_array(jax.random.normal, key, shape, jnp.float32), 0, 1).astype(jnp.float32)

    by_prior = jax.random.bernoulli(keys[2], share) & ~np.isnan(prior.means[0])
    return jnp.where(by_prior, draw(keys[3], prior.means), means), jnp.where(by_prior, draw(keys[4], prior.spreads), spreads)


def paint_means(labels: Labels, tissues: Tissues, of_tissue: Float[jax.Array, "t"]) -> Image:
    """The image of each voxel's tissue value: of means before a deformation, of standard deviations after it."""
    return of_tissue[tissues.of][labels][..., None]


def add_texture(key: jax.Array, means: Image, spreads: Image, nodes: float, share: float) -> Image:
    """Means plus normal noise of each voxel's standard deviation; up to `share` of the variance is smooth, a node every `nodes` voxels."""
    keys = jax.random.split(key, 3)
    smooth = jax.random.uniform(keys[0], (), maxval=share)
    fine = random_array(jax.random.normal, keys[1], means.shape, means.dtype)
    coarse = smooth_noise(keys[2], means, nodes, 1) / SPREAD
    return jnp.clip(means + spreads * (jnp.sqrt(1 - smooth) * fine + jnp.sqrt(smooth) * coarse), 0, 1)


def add_lesions(key: jax.Array, image: Image, white: Mask, nodes: float, load: float) -> Image:
    """The image with lesions of one random mean in up to about the share `load` of the white matter, like hyperintensities."""
    keys = jax.random.split(key, 3)
    field = smooth_noise(keys[0], image, nodes, 1)[..., 0] / SPREAD
    share = jax.random.uniform(keys[1], (), maxval=load)
    # The field, sums over 64 coefficients, is nearly normal, so the threshold is the normal quantile, without sorting.
    inside = jax.nn.sigmoid((field - jax.scipy.special.ndtri(1 - share)) * 8) * white
    return image + inside[..., None] * (jax.random.uniform(keys[2], (), image.dtype) - image)


def strip_skull(key: jax.Array, image: Image, brain: Mask, margin: float, edge: float) -> tuple[Image, Mask]:
    """The skull-stripped image, from `margin` voxels around the brain to a quarter of that inside it, and the mask of what is left.

    The border is soft over `edge` voxels, and follows the brain's mask after a Gaussian of half the margin, converted to a distance: for a
    plane border the blurred mask is the normal distribution function of the distance.
    """
    sigma = margin / 2
    kernels = tuple(gaussian(n, jnp.asarray(sigma, image.dtype)) for n in brain.shape)
    height = along_axes(brain[..., None].astype(image.dtype), kernels)
    inwards = sigma * jax.scipy.special.ndtri(jnp.clip(height, 1e-6, 1 - 1e-6))
    outwards = jax.random.uniform(key, (), image.dtype, -0.25, 1) * margin
    left = jnp.clip(0.5 + (inwards + outwards) / edge, 0, 1)
    return image * left, left[..., 0] > 0.5


def remove_face(key: jax.Array, image: Image, brain: Mask, orientation: str, gap: float) -> tuple[Image, Mask]:
    """The defaced image, 0 before and below a plane up to `gap` voxels in front of the brain, and the mask of what is left."""
    keys = jax.random.split(key, 2)
    forward, down = (next(i for i, code in enumerate(orientation) if code in pair) for pair in ("AP", "SI"))
    angle = jax.random.uniform(keys[0], (), image.dtype, 0.35, 1.0)  # radians below the horizontal: never only the forehead
    normal = jnp.zeros(3, image.dtype)
    normal = normal.at[forward].set(jnp.cos(angle) * AHEAD[orientation[forward]]).at[down].set(jnp.sin(angle) * AHEAD[orientation[down]])
    grid = jnp.meshgrid(*(jnp.arange(n, dtype=image.dtype) for n in brain.shape), indexing="ij", sparse=True)
    ahead = sum(axis * normal[i] for i, axis in enumerate(grid))
    surface = jnp.max(jnp.where(brain, ahead, -jnp.inf)) + jax.random.uniform(keys[1], (), image.dtype, 0.5, gap)
    left = ahead < surface
    return image * left[..., None], left


def add_air_noise(key: jax.Array, image: Image, head: Mask) -> Image:
    """The image with uniform noise in the air, as in the ratio of two images (MP2RAGE)."""
    return jnp.where(head[..., None], image, random_array(jax.random.uniform, key, image.shape, image.dtype))


def rescale(image: Image, head: Mask) -> Image:
    """The image scaled as by `standardize` with the default spec, with percentiles over every other voxel of each axis.

    The percentiles are the crop's, where a real scan has those of the whole head. In nine of ten crops of the sample cohort they differ by
    at most 3 % of the scan's range from the whole head's for crops of two thirds of each axis, and by at most 5 % for half of it.
    """
    every_other = (slice(None, None, 2),) * 3
    low = jnp.percentile(image[every_other], LOW)
    high = jnp.nanpercentile(jnp.where(head[every_other], image[every_other][..., 0], jnp.nan), HIGH)
    low = jnp.minimum(low, high - 1e-3)
    return jnp.nan_to_num(jnp.clip((image - low) / (high - low), 0, 1))


class Appearance(NamedTuple):
    """The random choices for one scan: whether it is synthesised, and its tissues' means and standard deviations."""

    made: Bool[jax.Array, ""]
    means: Float[jax.Array, "t"]
    spreads: Float[jax.Array, "t"]


class Generator(NamedTuple):
    """A synthesiser of scans by a config's `synth`, from label maps with the classes of `tissues`, voxels of `mm`, and axes as in "RAS".

    classes: the network's class for each class of the label maps. prior: intensities for its share of the synthetic scans.
    """

    config: ConfigDict
    tissues: Tissues
    classes: Integer[np.ndarray, "k"]
    mm: float
    orientation: str
    prior: Prior | None = None

    def appearance(self, key: jax.Array, labels_only: Bool[jax.Array, ""]) -> Appearance:
        """The appearance of a sample; one with `labels_only` is always synthesised."""
        c, (made_key, appearance_key) = self.config, jax.random.split(key)
        made = labels_only | jax.random.bernoulli(made_key, c.share)
        return Appearance(made, *random_appearance(appearance_key, self.tissues, c.spread, c.air, self.prior, c.prior.share))

    def with_means(self, appearance: Appearance, image: Image, labels: Labels) -> Image:
        """The real image or the image of tissue means, before deformation."""
        return jax.lax.cond(appearance.made, lambda: paint_means(labels, self.tissues, appearance.means), lambda: image)

    def finish(self, key: jax.Array, appearance: Appearance, image: Image, labels: Labels) -> tuple[Image, Labels]:
        """The scan after deformation, a synthetic one with texture and the like and scaled as real ones; and labels as network classes."""
        image = jax.lax.cond(appearance.made, lambda: self._scan(key, appearance, image, labels), lambda: image)
        return image, jnp.asarray(self.classes)[labels]

    def whole_scan(self, key: jax.Array, labels: Labels) -> tuple[Image, Labels]:
        """A synthetic scan of an undeformed label map, and its labels as network classes, for validation."""
        keys = jax.random.split(key)
        appearance = self.appearance(keys[0], jnp.array(True))
        return self.finish(keys[1], appearance, paint_means(labels, self.tissues, appearance.means), labels)

    def _scan(self, key: jax.Array, appearance: Appearance, image: Image, labels: Labels) -> Image:
        c, mm, keys = self.config, self.mm, jax.random.split(key, 5)
        brain, white = (jnp.asarray(ids)[labels] for ids in (self.tissues.brain, self.tissues.white))

        def sometimes(key: jax.Array, chance: float, change: Callable[[jax.Array], Any], otherwise: Any) -> Any:
            chance_key, change_key = jax.random.split(key)
            happens = jax.random.bernoulli(chance_key, chance)
            return jax.lax.cond(happens, lambda: change(change_key), lambda: otherwise) if chance else otherwise

        def deface(key: jax.Array) -> tuple[Image, Mask]:
            defaced, left = remove_face(key, image, brain, self.orientation, c.face.mm / mm)
            return defaced, left & head

        image = add_texture(keys[0], image, paint_means(labels, self.tissues, appearance.spreads), c.texture.mm / mm, c.texture.share)
        image = sometimes(keys[1], c.lesions.chance, lambda key: add_lesions(key, image, white, c.lesions.mm / mm, c.lesions.share), image)
        head = labels > 0
        strip = lambda key: strip_skull(key, image, brain, c.strip.mm / mm, 1.0)  # noqa: E731
        image, head = sometimes(keys[2], c.strip.chance, strip, (image, head))
        image, head = sometimes(keys[3], c.face.chance, deface, (image, head))
        image = rescale(image, head)
        return sometimes(keys[4], c.air_noise.chance, lambda key: add_air_noise(key, image, head), image)


def generator(config: ConfigDict, target: Table) -> Generator:
    """The generator of a config, from label maps with classes of HEAD to labels of `target`. Raises InputError for an unusable prior."""
    head = read_table(HEAD)
    tissues, classes = tissues_of(head), lookup(voxel_ids(head), head, target)
    prior = read_prior(Path(table), head, tissues.of) if (table := config.synth.prior.table) else None
    return Generator(config.synth, tissues, classes, config.data.spacing, spec(config.data.spec).orientation, prior)


def generator_of(config: ConfigDict, target: Table | None) -> Generator | None:
    """The generator of a run; None if it has no labels, or no synthetic scans. Raises InputError as `generator` does."""
    return generator(config, target) if target and config.synth.share else None
