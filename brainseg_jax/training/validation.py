"""Validation metrics and pictures: on central crops for pretraining, on whole volumes for segmentation."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Integer, Shaped
from ml_collections import ConfigDict

from brainseg_jax.data import cache
from brainseg_jax.data.augment.prepare import as_float, prepare_eval
from brainseg_jax.data.dataset import Dataset
from brainseg_jax.data.labels import Table
from brainseg_jax.data.loader import ProcessShare, central_crop, eval_batches
from brainseg_jax.data.synthesis.generator import Generator
from brainseg_jax.evaluation import metrics
from brainseg_jax.inference import sliding_window
from brainseg_jax.parallel import sharding, sync
from brainseg_jax.training.step import Objective, averaged, eval_streams, make_eval_step

Pictures = dict[str, Float[np.ndarray, "..."]]


class Validation(NamedTuple):
    """evaluate(params) → metrics by name; draw(params) → volumes [x y z] or [x y z 3] by name, of the first channel, to be drawn."""

    evaluate: Callable[[Any], dict[str, float]]
    draw: Callable[[Any], Pictures]


def validation_of(
    objective: Any, config: ConfigDict, data: Dataset, mesh: Mesh, share: ProcessShare, params: Any, generator: Generator | None
) -> Validation:
    """Validation on whole volumes where the data have labels, else on crops."""
    if data.target is not None:
        return of_volumes(objective.network, config, data, share, generator)
    return of_crops(objective, config, data, mesh, share, params)


def validation_volumes(data: Dataset, most: int) -> list[cache.Entry]:
    """At most `most` validation volumes, evenly spaced: a manifest may be sorted by site."""
    n = min(len(data.val), most)
    return [data.val[i * len(data.val) // n] for i in range(n)]


def of_crops(objective: Objective, config: ConfigDict, data: Dataset, mesh: Mesh, share: ProcessShare, params: Any) -> Validation:
    """The objective's own metrics and pictures on central crops; compiled for abstract `params` with their sharding."""
    files = [entry.file for entry in validation_volumes(data, config.eval_volumes)]
    rows, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((config.data.batch, *config.data.crop, config.channels), jnp.dtype(config.data.dtype), sharding=rows),
        "weight": jax.ShapeDtypeStruct((config.data.batch,), jnp.float32, sharding=rows),
    }
    index = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    eval_step = make_eval_step(objective, prepare_eval, config.seed)
    gather = sharding.gather_params(jax.tree.map(lambda p: p.sharding, params))
    step = lambda params, batch, index: eval_step(gather(params), batch, index)  # noqa: E731
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, out_shardings=everywhere).lower(params, batch, index).compile()

    def evaluate(params: Any) -> dict[str, float]:
        batches = sharding.put_batches(eval_batches(files, crop=config.data.crop, batch=config.data.batch, share=share), mesh)
        values = averaged([compiled(params, batch, np.int32(i)) for i, batch in enumerate(batches)])
        return sync.broadcast_from_first(lambda: values)

    @partial(jax.jit, out_shardings=everywhere)
    def pictures(params: Any, image: jax.Array) -> tuple[jax.Array, ...]:
        key, rngs = eval_streams(objective, config.seed, 0)
        return objective.apply({"params": params}, prepare_eval(key, {"image": image}), method="pictures", rngs=rngs)

    def draw(params: Any) -> Pictures:
        crop = central_crop(cache.load(files[0])["image"], config.data.crop)
        volumes = zip(objective.picture_names, pictures(params, crop[None]), strict=True)
        return {name: np.asarray(volume)[0, ..., 0] for name, volume in volumes}

    return Validation(evaluate, draw)


def of_volumes(network: Any, config: ConfigDict, data: Dataset, share: ProcessShare, generator: Generator | None) -> Validation:
    """Dice on whole volumes: `dice/NAME`, the mean over volumes where a structure counts; `dice`, the mean of these; `loss`, 1 − `dice`.

    The background is left out. Each process segments its share of the volumes on one device. `generator` synthesises the scans of label
    maps without an image.
    """
    entries, k = validation_volumes(data, config.eval_volumes), config.classes
    make = jax.jit(generator.whole_scan) if generator else None

    def volume(i: int) -> dict[str, np.ndarray]:
        """The i-th image and its labels; a synthesised image is the same at every evaluation."""
        arrays = cache.load(entries[i].file)
        if not entries[i].row.labels_only:
            return arrays
        image, label = make(jax.random.fold_in(jax.random.key(config.seed + 1), i), arrays["label"])
        return {"image": np.asarray(image), "label": np.asarray(label)}

    def segment(params: Any, image: np.ndarray) -> Integer[np.ndarray, "x y z"]:
        model = sliding_window.Model(network, params, tuple(config.data.crop))
        settings = {"overlap": config.segmentation.overlap, "blend": config.segmentation.blend}
        return sliding_window.segment([model], as_network_input(image), **settings).labels

    def score(params: Any, i: int) -> list[float]:
        arrays = volume(i)
        return metrics.dice(metrics.confusion(segment(params, arrays["image"]), arrays["label"], k)).tolist()

    def evaluate(params: Any) -> dict[str, float]:
        params = sharding.on_one_device(params)
        mine = [score(params, i) for i in range(len(entries))[share.index :: share.count]]
        parts = [json.loads(part) for part in sync.all_gather(json.dumps(mine))]
        # In the order of the files: the mean is bit-identical for any number of processes.
        means = mean_of_counted(np.array([parts[i % share.count][i // share.count] for i in range(len(entries))]))[1:]
        names = [f"dice/{structure.name}" for structure in data.target.structures]
        dice = float(np.nanmean(means))
        return {"loss": 1 - dice, "dice": dice} | {name: float(value) for name, value in zip(names, means, strict=True) if value == value}

    def draw(params: Any) -> Pictures:
        arrays = volume(0)
        image = np.asarray(as_network_input(arrays["image"]))[..., 0]
        classes = {"labels": arrays["label"], "predicted": segment(sharding.on_one_device(params), arrays["image"])}
        return {"image": image} | {name: colour_overlay(image, labels, data.target) for name, labels in classes.items()}

    return Validation(evaluate, draw)


def as_network_input(image: Shaped[np.ndarray, "x y z c"]) -> Float[jax.Array, "x y z c"]:
    """A stored volume as floating-point network input."""
    return as_float(jnp.asarray(image)[None])[0]


def mean_of_counted(scores: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "k"]:
    """The mean of each class over the volumes whose score is not NaN; NaN if there are none."""
    counted = ~np.isnan(scores)
    return np.where(counted.any(0), np.nansum(scores, 0) / np.maximum(counted.sum(0), 1), np.nan)


def colour_overlay(image: Float[np.ndarray, "x y z"], classes: Integer[np.ndarray, "x y z"], table: Table) -> Float[np.ndarray, "x y z 3"]:
    """The image in grey, overlaid with its classes in the table's colours."""
    colours = np.array([(0, 0, 0), *(tuple(bytes.fromhex(s.colour[1:])) for s in table.structures)]) / 255
    return np.where(classes[..., None] > 0, 0.45 * image[..., None] + 0.55 * colours[classes], image[..., None]).astype(np.float32)
