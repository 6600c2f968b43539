"""Linear probing of a pretrained encoder (Alain & Bengio 2016): a linear classifier predicts a voxel's class from the frozen feature maps.

It is fitted on a few labelled volumes and scored on other subjects, which measures pretraining by its use instead of its loss. The
baselines are a voxel's surroundings and position without an encoder, and the untrained encoder.

The classifier is ridge regression to ±1 for each class, with equal class weights, in closed form: without learning rate and seed, so rows
of the table differ by the encoder only. It is not comparable with fine-tuning, which also trains the encoder.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from brainseg_jax.config.resolve import of_card
from brainseg_jax.core import progress
from brainseg_jax.core.errors import InputError
from brainseg_jax.data import cache, dataset, labels
from brainseg_jax.data.augment.prepare import as_float
from brainseg_jax.data.loader import central_crop
from brainseg_jax.data.manifest import read_manifest
from brainseg_jax.models import encoders
from brainseg_jax.weights.checkpoint import load

Points = Float[np.ndarray, "n 3"]
Features = Float[np.ndarray, "n f"]
Classes = Integer[np.ndarray, "n"]

PER_CLASS = 1000  # voxels of each class drawn from a training volume
PER_VOLUME = 20_000  # voxels drawn from a validation volume
RIDGE = 1e-3  # relative to the mean variance of a feature, which is 1


def interpolate(grid: Float[np.ndarray, "x y z f"], points: Points, size: Sequence[int]) -> Features:
    """A feature map's values at voxels of an image of `size`, trilinear between cell centres, constant beyond the outermost ones.

    The map covers the image with fewer, larger cells.
    """
    shape = np.array(grid.shape[:3])
    position = np.clip((points + 0.5) * shape / size - 0.5, 0, shape - 1)
    low = np.minimum(position.astype(int), np.maximum(shape - 2, 0))
    high = np.minimum(low + 1, shape - 1)
    part = (position - low).astype(np.float32)
    out = np.zeros((len(points), grid.shape[3]), np.float32)
    for corner in np.ndindex(2, 2, 2):
        x, y, z = np.where(corner, high, low).T
        out += grid[x, y, z] * np.prod(np.where(corner, part, 1 - part), axis=1, keepdims=True)
    return out


def surroundings(image: Float[np.ndarray, "x y z c"], points: Integer[np.ndarray, "n 3"]) -> Features:
    """Baseline features without an encoder: intensities of the 3 × 3 × 3 voxels in each channel, the position, and its square."""
    padded = np.pad(image, [(1, 1)] * 3 + [(0, 0)], mode="edge")
    around = [padded[tuple((points + offset).T)] for offset in np.ndindex(3, 3, 3)]
    place = points / np.array(image.shape[:3]) - 0.5
    return np.column_stack([*around, place, place**2]).astype(np.float32)


def fit(features: Features, classes: Classes, k: int) -> Callable[[Features], Classes]:
    """The fitted classifier features → classes 0 … k − 1 (see the top of this file); it standardises the features."""
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    weight = 1 / np.maximum(np.bincount(classes, minlength=k), 1)[classes]
    weight = (weight / weight.sum())[:, None]

    def standard(features: Features) -> Float[np.ndarray, "n f1"]:
        return np.column_stack([(features - mean) / spread, np.ones(len(features))]).astype(np.float64)

    x, y = standard(features), np.where(classes[:, None] == np.arange(k), 1.0, -1.0)
    solution = np.linalg.solve(x.T @ (weight * x) + RIDGE * np.eye(x.shape[1]), x.T @ (weight * y))
    return lambda features: np.argmax(standard(features) @ solution, axis=1)


def judge(predicted: Classes, classes: Classes, k: int) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """(recall, Dice) of each class over the drawn voxels; NaN for a class without any."""
    confusion = np.bincount(predicted * k + classes, minlength=k * k).reshape(k, k)
    positives, both = confusion.sum(axis=0), np.diag(confusion)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = both / positives, 2 * both / (positives + confusion.sum(axis=1))
    return tuple(np.where(positives > 0, score, np.nan) for score in scores)


def drawn(classes: Integer[np.ndarray, "x y z"], k: int, rng: np.random.Generator) -> Integer[np.ndarray, "n 3"]:
    """Random voxels of a volume to fit on, at most PER_CLASS of each class."""
    flat = classes.ravel()
    chosen = [rng.permutation(np.flatnonzero(flat == c))[:PER_CLASS] for c in range(k)]
    return np.column_stack(np.unravel_index(np.concatenate(chosen), classes.shape))


def anywhere(classes: Integer[np.ndarray, "x y z"], rng: np.random.Generator) -> Integer[np.ndarray, "n 3"]:
    """Random voxels of a volume to score on, PER_VOLUME of any class."""
    return np.column_stack(np.unravel_index(rng.choice(classes.size, min(PER_VOLUME, classes.size), replace=False), classes.shape))


def probe(
    checkpoint: Path, manifest: str, table: str, volumes: int, unseen: int
) -> tuple[dict[str, tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]], tuple[str, ...]]:
    """({features: (recall, Dice) of each class}, the structures' abbreviations) for a checkpoint's encoder.

    Training volumes are chosen as by `data.num_labelled`, so that every pretraining gets the same ones, and standardised as for the
    checkpoint; the central crop of each volume is used. Prints how many label maps without an image are left out. Raises InputError for a
    checkpoint without an encoder, and if too few volumes have labels.
    """
    params, card = load(checkpoint, "params/encoder")
    config = of_card(card, checkpoint)
    config.dtype, config.remat = "float32", False
    config.data.manifest = manifest or config.data.manifest
    if manifest:
        config.data.splits = ""
    config.data.num_labelled, config.data.missing_labels = volumes, "background"
    target = labels.read_table(table)
    try:
        data = dataset.prepare(config.data, target, print, progress.progress, config.channels, use=lambda row: not row.labels_only)
    except InputError as refusal:
        raise InputError(str(refusal).replace("data.num_labelled", "--volumes")) from None
    if without_image := sum(row.labels_only for row in read_manifest(data.manifest)):
        print(f"label maps without an image, which are left out: {without_image}")
    encoder = encoders.encoder(config)
    image = jnp.zeros((1, *config.data.crop, config.channels))
    untrained = jax.jit(encoder.init)(jax.random.key(config.seed), image)["params"]
    maps = jax.jit(lambda params, image: encoder.apply({"params": params}, as_float(image)))
    k = len(target.structures) + 1
    rng = np.random.default_rng(0)
    encoders_params = {"without an encoder": None, "encoder, untrained": untrained, "encoder, of the checkpoint": params}

    def read(entry: Any, choose: Callable[..., Integer[np.ndarray, "n 3"]]) -> tuple[dict[str, Features], Classes]:
        arrays = cache.load(entry.file)
        crop = tuple(config.data.crop)
        image, classes = (central_crop(arrays[part], crop) for part in ("image", "label"))
        points, classes = choose(classes), classes.astype(np.int64)
        baseline = surroundings(image / np.float32(255 if image.dtype == np.uint8 else 1), points)
        features = {}
        for name, params in encoders_params.items():
            grids = maps(params, image[None]) if params else ()
            features[name] = np.column_stack([baseline, *(interpolate(np.asarray(g)[0], points.astype(float), crop) for g in grids)])
        return features, classes[tuple(points.T)]

    training = [read(entry, lambda classes: drawn(classes, k, rng)) for entry in data.train]
    validation = [read(entry, lambda classes: anywhere(classes, rng)) for entry in data.val[:unseen]]

    def joined(volumes: list, name: str) -> tuple[Features, Classes]:
        return np.concatenate([features[name] for features, _ in volumes]), np.concatenate([classes for _, classes in volumes])

    rows = {}
    for name in encoders_params:
        classify = fit(*joined(training, name), k)
        features, classes = joined(validation, name)
        rows[name] = judge(classify(features), classes, k)
    return rows, tuple(structure.abbreviation for structure in target.structures)
