"""What a pretrained encoder knows about tissue: a linear classifier reads the class of a voxel off its frozen maps (linear probing).

It is fitted on a few labelled volumes and scored on unseen people, so pretraining is measured by what it is for, not by its loss (Alain &
Bengio 2016). Beside it stand what a voxel's surroundings and place tell without an encoder, and the same encoder before it learned.

The classifier is ridge regression towards ±1 for each class, every class weighing the same, in closed form: it has no learning rate and
no seed, so what differs between rows of the table is the encoder. It cannot be compared with fine-tuning, which moves the encoder too.
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


PER_CLASS = 1000  # voxels of each class that are drawn of a volume to fit


PER_VOLUME = 20_000  # voxels that are drawn of a validation volume, wherever they lie


RIDGE = 1e-3  # of the mean variance of a feature, which is 1


def interpolate(grid: Float[np.ndarray, "x y z f"], points: Points, size: Sequence[int]) -> Features:
    """A map's features at voxels of the image [n 3], trilinear between the centres of its cells, the outermost repeated outwards.

    `size` is the image's; the map covers it with fewer, larger cells.
    """
    shape = np.array(grid.shape[:3])
    at = np.clip((points + 0.5) * shape / size - 0.5, 0, shape - 1)
    low = np.minimum(at.astype(int), np.maximum(shape - 2, 0))
    high = np.minimum(low + 1, shape - 1)
    part = (at - low).astype(np.float32)
    out = np.zeros((len(points), grid.shape[3]), np.float32)
    for corner in np.ndindex(2, 2, 2):
        x, y, z = np.where(corner, high, low).T
        out += grid[x, y, z] * np.prod(np.where(corner, part, 1 - part), axis=1, keepdims=True)
    return out


def surroundings(image: Float[np.ndarray, "x y z c"], points: Integer[np.ndarray, "n 3"]) -> Features:
    """What is known without an encoder: intensities of the 27 voxels around in each channel, the place, and its square."""
    padded = np.pad(image, [(1, 1)] * 3 + [(0, 0)], mode="edge")
    around = [padded[tuple((points + offset).T)] for offset in np.ndindex(3, 3, 3)]
    place = points / np.array(image.shape[:3]) - 0.5
    return np.column_stack([*around, place, place**2]).astype(np.float32)


def fit(features: Features, classes: Classes, k: int) -> Callable[[Features], Classes]:
    """The classifier (see the head of this file) for classes 0 … k − 1, of standardised features."""
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    weight = 1 / np.maximum(np.bincount(classes, minlength=k), 1)[classes]
    weight = (weight / weight.sum())[:, None]

    def standard(features: Features) -> Float[np.ndarray, "n f1"]:
        return np.column_stack([(features - mean) / spread, np.ones(len(features))]).astype(np.float64)

    x, y = standard(features), np.where(classes[:, None] == np.arange(k), 1.0, -1.0)
    solution = np.linalg.solve(x.T @ (weight * x) + RIDGE * np.eye(x.shape[1]), x.T @ (weight * y))
    return lambda features: np.argmax(standard(features) @ solution, axis=1)


def judge(predicted: Classes, classes: Classes, k: int) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """(recall, Dice) of each class over the drawn voxels; NaN for a class that is not among them."""
    table = np.bincount(predicted * k + classes, minlength=k * k).reshape(k, k)
    true, found, both = table.sum(axis=0), table.sum(axis=1), np.diag(table)
    there = true > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, both / true, np.nan), np.where(there, 2 * both / (true + found), np.nan)


def drawn(classes: Integer[np.ndarray, "x y z"], k: int, rng: np.random.Generator) -> Integer[np.ndarray, "n 3"]:
    """Voxels of a volume to fit on: at most PER_CLASS of each class."""
    flat = classes.ravel()
    chosen = [rng.permutation(np.flatnonzero(flat == c))[:PER_CLASS] for c in range(k)]
    return np.column_stack(np.unravel_index(np.concatenate(chosen), classes.shape))


def anywhere(classes: Integer[np.ndarray, "x y z"], rng: np.random.Generator) -> Integer[np.ndarray, "n 3"]:
    """Voxels of a volume to judge on: PER_VOLUME of them, without regard to class."""
    return np.column_stack(np.unravel_index(rng.choice(classes.size, min(PER_VOLUME, classes.size), replace=False), classes.shape))


def probe(
    checkpoint: Path, manifest: str, table: str, volumes: int, unseen: int
) -> tuple[dict[str, tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]], tuple[str, ...]]:
    """({what is read: (recall, Dice) of each class}, the structures' names) for a checkpoint's encoder.

    Training volumes are drawn as `data.num_labelled` draws them, so that pretrainings meet the same ones, standardised as for the
    checkpoint; of each volume the central crop is read. Label maps without an image are left out, and that is said. Raises InputError for a
    checkpoint without encoder, and where too few volumes have labels.
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
    if bare := sum(row.labels_only for row in read_manifest(data.manifest)):
        print(f"label maps without an image, which are left out: {bare}")
    encoder = encoders.encoder(config)
    image = jnp.zeros((1, *config.data.crop, config.channels))
    untrained = jax.jit(encoder.init)(jax.random.key(config.seed), image)["params"]
    maps = jax.jit(lambda params, image: encoder.apply({"params": params}, as_float(image)))
    k = len(target.structures) + 1
    rng = np.random.default_rng(0)
    readers = {"without an encoder": None, "encoder, untrained": untrained, "encoder, of the checkpoint": params}

    def read(entry: Any, choose: Callable[..., Integer[np.ndarray, "n 3"]]) -> tuple[dict[str, Features], Classes]:
        arrays = cache.load(entry.file)
        crop = tuple(config.data.crop)
        image, classes = (central_crop(arrays[part], crop) for part in ("image", "label"))
        points, classes = choose(classes), classes.astype(np.int64)
        plain = surroundings(image / np.float32(255 if image.dtype == np.uint8 else 1), points)
        features = {}
        for name, params in readers.items():
            found = maps(params, image[None]) if params else ()
            features[name] = np.column_stack([plain, *(interpolate(np.asarray(m)[0], points.astype(float), crop) for m in found)])
        return features, classes[tuple(points.T)]

    fitted = [read(entry, lambda classes: drawn(classes, k, rng)) for entry in data.train]
    seen = [read(entry, lambda classes: anywhere(classes, rng)) for entry in data.val[:unseen]]

    def joined(volumes: list, name: str) -> tuple[Features, Classes]:
        return np.concatenate([features[name] for features, _ in volumes]), np.concatenate([classes for _, classes in volumes])

    rows = {}
    for name in readers:
        classify = fit(*joined(fitted, name), k)
        features, classes = joined(seen, name)
        rows[name] = judge(classify(features), classes, k)
    return rows, tuple(structure.abbreviation for structure in target.structures)
