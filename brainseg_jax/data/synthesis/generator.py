"""Scans made from label maps (Billot et al. 2023, SynthSeg): what tissues appearance like, and what is missing of a head, of one sample.

A made scan is painted first, each structure in the mean of its tissue, then deformed as a real one is: interpolating the painted means is
partial volume, since a voxel between two structures gets its share of both. Then comes what every scan has in its own grid: spread and
texture, lesions, a skull taken off, a face taken out, noise of the air. Contrast curves, bias, resolution and noise are augmentation's, for
made and real scans alike. All is pure in (key, arrays), within [0, 1], and for a device: nothing depends on what is drawn but numbers.
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

# Standard deviation of `smooth_noise`, on average over a cell: coefficients have 1/√3, of whose variance a cubic B-spline keeps 151/315.
SPREAD = (151 / 315) ** 1.5 / 3**0.5
LOW, HIGH = spec("default").percentiles  # of all voxels and of the head's, which become 0 and 1
CEREBRAL_WHITE = {2, 41}  # FreeSurfer ids
AHEAD = {"A": 1, "P": -1, "S": -1, "I": 1}  # towards the face: forwards and down


class Tissues(NamedTuple):
    """What is known of the ids of label maps, 0 (air) to k − 1: each id's tissue, and whether it is brain, or white matter.

    Ids of one tissue appearance alike in every scan, as the two sides of a structure do.
    """

    of: Integer[np.ndarray, "k"]
    brain: Bool[np.ndarray, "k"]
    white: Bool[np.ndarray, "k"]

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.of.max()) + 1


def tissues_of(table: Table) -> Tissues:
    """The tissues of a label table's classes, background first: partners on the two sides are one; CSF around the brain is no brain."""
    number = {s.id: n for n, s in enumerate(table.structures, 1)}
    first = [0, *(min(number[s.id], number[s.partner]) for s in table.structures)]
    of = np.unique(first, return_inverse=True)[1]
    brain = [False, *(s.tissue != "other" and s.freesurfer != (24,) for s in table.structures)]
    white = [False, *(bool(CEREBRAL_WHITE & {*s.freesurfer, *s.part_of}) for s in table.structures)]
    return Tissues(of, np.array(brain), np.array(white))


def random_appearance(
    key: jax.Array, tissues: Tissues, spread: float, air: float, prior: Prior | None = None, share: float = 0.0
) -> tuple[Float[jax.Array, "t"], Float[jax.Array, "t"]]:
    """Mean and spread of every tissue in one scan: anything from 0 to 1, and to `spread`; with chance `share` as the prior says.

    The mean of id 0's tissue, which is the air, stays below `air` where it is not the prior's.
    """
    keys = jax.random.split(key, 5)
    t = tissues.count
    means, spreads = (
        random_array(jax.random.uniform, keys[0], (t,), jnp.float32),
        random_array(jax.random.uniform, keys[1], (t,), jnp.float32) * spread,
    )
    means = means.at[tissues.of[0]].multiply(air)
    if prior is None:
        return means, spreads

    def likely(key: jax.Array, of: Float[np.ndarray, "2 t"]) -> Float[jax.Array, "t"]:
        return jnp.clip(of[0] + of[1] * random_array(jax.random.normal, key, (t,), jnp.float32), 0, 1).astype(jnp.float32)

    usual = jax.random.bernoulli(keys[2], share) & ~np.isnan(prior.means[0])
    return jnp.where(usual, likely(keys[3], prior.means), means), jnp.where(usual, likely(keys[4], prior.spreads), spreads)


def paint_means(labels: Labels, tissues: Tissues, of_tissue: Float[jax.Array, "t"]) -> Image:
    """Each voxel's tissue in its value: means before a deformation, spreads after it."""
    return of_tissue[tissues.of][labels][..., None]


def add_texture(key: jax.Array, means: Image, spreads: Image, nodes: float, share: float) -> Image:
    """Normal noise of each voxel's spread around its mean; up to `share` of its variance is smooth, with a node every `nodes` voxels."""
    keys = jax.random.split(key, 3)
    smooth = jax.random.uniform(keys[0], (), maxval=share)
    fine = random_array(jax.random.normal, keys[1], means.shape, means.dtype)
    coarse = smooth_noise(keys[2], means, nodes, 1) / SPREAD
    return jnp.clip(means + spreads * (jnp.sqrt(1 - smooth) * fine + jnp.sqrt(smooth) * coarse), 0, 1)


def add_lesions(key: jax.Array, image: Image, white: Mask, nodes: float, load: float) -> Image:
    """Patches of the white matter, up to about the share `load` of it, in another mean, as hyperintensities; labels stay what they are."""
    keys = jax.random.split(key, 3)
    field = smooth_noise(keys[0], image, nodes, 1)[..., 0] / SPREAD
    wanted = jax.random.uniform(keys[1], (), maxval=load)
    # A field of sums over 64 coefficients is close to normal, so this quantile of it is too, without sorting.
    inside = jax.nn.sigmoid((field - jax.scipy.special.ndtri(1 - wanted)) * 8) * white
    return image + inside[..., None] * (jax.random.uniform(keys[2], (), image.dtype) - image)


def strip_skull(key: jax.Array, image: Image, brain: Mask, margin: float, edge: float) -> tuple[Image, Mask]:
    """The brain with up to `margin` voxels around it, or a quarter of that less than all of it; and what is left of the head.

    Its border is `edge` voxels soft, and as smooth as the brain's mask after a Gaussian of half the margin, which is read as a distance: of
    a plane border the blurred mask is the normal distribution of the distance.
    """
    sigma = margin / 2
    kernels = tuple(gaussian(n, jnp.asarray(sigma, image.dtype)) for n in brain.shape)
    height = along_axes(brain[..., None].astype(image.dtype), kernels)
    inwards = sigma * jax.scipy.special.ndtri(jnp.clip(height, 1e-6, 1 - 1e-6))
    outwards = jax.random.uniform(key, (), image.dtype, -0.25, 1) * margin
    left = jnp.clip(0.5 + (inwards + outwards) / edge, 0, 1)
    return image * left, left[..., 0] > 0.5


def remove_face(key: jax.Array, image: Image, brain: Mask, orientation: str, gap: float) -> tuple[Image, Mask]:
    """Zeros before and below a plane in front of the brain, up to `gap` voxels away from it; and what is left of the head."""
    keys = jax.random.split(key, 2)
    forward, down = (next(i for i, code in enumerate(orientation) if code in pair) for pair in ("AP", "SI"))
    angle = jax.random.uniform(keys[0], (), image.dtype, 0.35, 1.0)  # radians below straight ahead: never the forehead alone
    normal = jnp.zeros(3, image.dtype)
    normal = normal.at[forward].set(jnp.cos(angle) * AHEAD[orientation[forward]]).at[down].set(jnp.sin(angle) * AHEAD[orientation[down]])
    grid = jnp.meshgrid(*(jnp.arange(n, dtype=image.dtype) for n in brain.shape), indexing="ij", sparse=True)
    ahead = sum(axis * normal[i] for i, axis in enumerate(grid))
    surface = jnp.max(jnp.where(brain, ahead, -jnp.inf)) + jax.random.uniform(keys[1], (), image.dtype, 0.5, gap)
    left = ahead < surface
    return image * left[..., None], left


def add_air_noise(key: jax.Array, image: Image, head: Mask) -> Image:
    """Air that is anything from black to white, voxel by voxel, as where two images were divided (MP2RAGE)."""
    return jnp.where(head[..., None], image, random_array(jax.random.uniform, key, image.shape, image.dtype))


def rescale(image: Image, head: Mask) -> Image:
    """Scaled as `standardize` does by default, from the background's level to the head's brightest, by every other voxel of each axis.

    Of a crop both are the crop's own, where a real one has its whole head's. On heads of the sample cohort in nine of ten crops each lies
    within 3 % of the scan's range of what it is for the whole, with crops of two thirds of each axis, and within 5 % with half of it.
    """
    few = (slice(None, None, 2),) * 3
    low = jnp.percentile(image[few], LOW)
    high = jnp.nanpercentile(jnp.where(head[few], image[few][..., 0], jnp.nan), HIGH)
    low = jnp.minimum(low, high - 1e-3)
    return jnp.nan_to_num(jnp.clip((image - low) / (high - low), 0, 1))


class Appearance(NamedTuple):
    """What is drawn for one scan: whether it is made, and how its tissues appearance then."""

    made: Bool[jax.Array, ""]
    means: Float[jax.Array, "t"]
    spreads: Float[jax.Array, "t"]


class Generator(NamedTuple):
    """Makes scans as a config's `synth` says, of label maps with the classes of `tissues`, on voxels of `mm`, axes as in "RAS".

    classes: for each of these classes the one that the network learns. prior: what its share of the made scans looks like.
    """

    config: ConfigDict
    tissues: Tissues
    classes: Integer[np.ndarray, "k"]
    mm: float
    orientation: str
    prior: Prior | None = None

    def appearance(self, key: jax.Array, labels_only: Bool[jax.Array, ""]) -> Appearance:
        """Whether a sample's scan is made, which it always is where there are `labels_only`, and of what."""
        c, (whether, how) = self.config, jax.random.split(key)
        made = labels_only | jax.random.bernoulli(whether, c.share)
        return Appearance(made, *random_appearance(how, self.tissues, c.spread, c.air, self.prior, c.prior.share))

    def with_means(self, appearance: Appearance, image: Image, labels: Labels) -> Image:
        """The real image, or its structures in their means: before the deformation."""
        return jax.lax.cond(appearance.made, lambda: paint_means(labels, self.tissues, appearance.means), lambda: image)

    def finish(self, key: jax.Array, appearance: Appearance, image: Image, labels: Labels) -> tuple[Image, Labels]:
        """What a made scan has in its own grid, scaled as real ones are; and of either the labels as classes that the network learns."""
        image = jax.lax.cond(appearance.made, lambda: self._scan(key, appearance, image, labels), lambda: image)
        return image, jnp.asarray(self.classes)[labels]

    def whole_scan(self, key: jax.Array, labels: Labels) -> tuple[Image, Labels]:
        """A scan made of a label map as it lies there, and its labels as classes that the network learns: to validate with."""
        keys = jax.random.split(key)
        appearance = self.appearance(keys[0], jnp.array(True))
        return self.finish(keys[1], appearance, paint_means(labels, self.tissues, appearance.means), labels)

    def _scan(self, key: jax.Array, appearance: Appearance, image: Image, labels: Labels) -> Image:
        c, mm, keys = self.config, self.mm, jax.random.split(key, 5)
        brain, white = (jnp.asarray(ids)[labels] for ids in (self.tissues.brain, self.tissues.white))

        def perhaps(key: jax.Array, chance: float, change: Callable[..., Any], *now: Any) -> Any:
            whether, how = jax.random.split(key)
            return jax.lax.cond(jax.random.bernoulli(whether, chance), lambda: change(how, *now), lambda: now) if chance else now

        image = add_texture(keys[0], image, paint_means(labels, self.tissues, appearance.spreads), c.texture.mm / mm, c.texture.share)
        mark = lambda key, image: (add_lesions(key, image, white, c.lesions.mm / mm, c.lesions.share),)  # noqa: E731
        (image,) = perhaps(keys[1], c.lesions.chance, mark, image)
        head = labels > 0
        image, head = perhaps(
            keys[2], c.strip.chance, lambda key, image, _: strip_skull(key, image, brain, c.strip.mm / mm, 1.0), image, head
        )
        face = lambda key, image, head: _both(head, remove_face(key, image, brain, self.orientation, c.face.mm / mm))  # noqa: E731
        image, head = perhaps(keys[3], c.face.chance, face, image, head)
        image = rescale(image, head)
        return perhaps(keys[4], c.air_noise.chance, lambda key, image: (add_air_noise(key, image, head),), image)[0]


def generator(config: ConfigDict, target: Table) -> Generator:
    """The generator of a config's scans, whose label maps have the classes of HEAD and are learned as those of `target`.

    Raises InputError for a prior that cannot be read.
    """
    head = read_table(HEAD)
    tissues, classes = tissues_of(head), lookup(voxel_ids(head), head, target)
    prior = read_prior(Path(table), head, tissues.of) if (table := config.synth.prior.table) else None
    return Generator(config.synth, tissues, classes, config.data.spacing, spec(config.data.spec).orientation, prior)


def generator_of(config: ConfigDict, target: Table | None) -> Generator | None:
    """The generator of a run's scans; None where it has no labels, or makes none. Raises InputError as `generator`."""
    return generator(config, target) if target and config.synth.share else None


def _both(head: Mask, cut: tuple[Image, Mask]) -> tuple[Image, Mask]:
    return cut[0], cut[1] & head
