"""Sliding-window inference of whole volumes, a few rows at a time: the logits of a whole volume are never in memory.

Logits are blended as in MONAI's sliding_window_inference. Windows are processed in order along x; only rows that a window can still reach
are kept, and final rows are reduced to labels and volumes at once. Since the head is linear, its input is blended instead of the logits
where it has fewer channels, and the head is applied once per voxel instead of once per window.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import product
from math import ceil
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int, UInt

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.runtime import known_options, trim_memory
from brainseg_jax.models.segmenter import Segmenter

Blend = Literal["constant", "gaussian"]
Volume = Float[np.ndarray | jax.Array, "x y z c"]
Size = tuple[int, int, int]

ROWS = 8  # planes across x that are reduced to labels at once; the only array with all classes has this many


class Model(NamedTuple):
    """A network, its weights, and the size of its windows in voxels. Equal networks are compiled once."""

    network: Segmenter
    params: Any
    window: Size


class Flip(NamedTuple):
    """A flip of the volume: its axis (0, 1, 2), and the class that each class becomes, left and right being exchanged."""

    axis: int
    partners: Int[np.ndarray, "k"]


class Segmentation(NamedTuple):
    """`labels`: the likeliest class of each voxel. `volumes`: the sum of each class's probability, in voxels."""

    labels: UInt[np.ndarray, "x y z"]
    volumes: Float[np.ndarray, "k"]


def segment(
    models: Sequence[Model],
    volume: Volume,
    *,
    overlap: float | int = 0.5,
    blend: Blend = "gaussian",
    batch: int = 1,
    flip: Flip | None = None,
    each: Callable[[slice, Float[jax.Array, "r y z k"]], Any] | None = None,
) -> Segmentation:
    """Labels and soft volumes of a standardised volume: by the logits of one model, or by the mean probability of an ensemble.

    Models may differ in architecture. With `flip` each model also segments the flipped volume. `batch`: windows per call of a network.
    `each` is called with final rows along x and their probabilities, in order. Raises InputError for models of different classes and for
    invalid settings.
    """
    classes = sorted({model.network.classes for model in models})
    if len(classes) != 1:
        what = f"models of {' and '.join(map(str, classes))} classes" if classes else "no model"
        raise InputError(f"{what}: give at least one, and all of the same classes")
    same = np.arange(*classes)
    if flip and not (flip.axis in (0, 1, 2) and flip.partners.shape == same.shape and (np.argsort(flip.partners) == flip.partners).all()):
        raise InputError(f"flip: give axis 0, 1 or 2, and the partner of each of the {len(same)} classes, each its partner's partner")
    views = [(None, None)] + ([(flip.axis, flip.partners)] if flip else [])
    streams = [slabs(model, volume, overlap=overlap, blend=blend, batch=batch, flip_axis=axis) for model in models for axis, _ in views]
    partners = [partner for _ in models for _, partner in views]
    labels, volumes = [], []
    for slab in zip(*streams, strict=True):
        rows_labels, sums, probabilities = _decide([logits for _, logits in slab], partners)
        # The host waits here, once per slab and never per window, so that slabs do not pile up.
        labels.append(np.asarray(rows_labels))
        volumes.append(np.asarray(sums))
        if each:
            each(slab[0][0], probabilities)
    return Segmentation(np.concatenate(labels), np.sum(volumes, axis=0, dtype=np.float64))


def slabs(
    model: Model, volume: Volume, *, overlap: float | int = 0.5, blend: Blend = "gaussian", batch: int = 1, flip_axis: int | None = None
) -> Iterator[tuple[slice, Float[jax.Array, "r y z k"]]]:
    """Yields rows along x with their blended logits as soon as they are final, ROWS at a time (the last may be fewer).

    An axis shorter than a window is padded with zeros on both sides, which are cropped again. With `flip_axis` the network segments the
    volume flipped along that axis; rows are yielded as in the volume itself. Raises InputError for invalid settings.
    """
    plan = _planned(model, volume, overlap, blend, batch, flip_axis)
    size, before, total = volume.shape[:3], plan.before, plan.total
    padding = [*((b, w - n - b) for n, w, b in zip(size, plan.whole, before, strict=True)), (0, 0)]
    volume = jax.device_put(jnp.pad(volume, padding), total.sharding)
    for start, first, after in zip(plan.starts, plan.firsts, [*plan.firsts[1:], size[0]], strict=True):
        for places, live in zip(plan.calls, plan.live, strict=True):
            total = plan.add(total, volume, plan.weight, start, first, places, live)
        for row in range(first, after, ROWS):
            rows = min(ROWS, size[0] - row)
            corner = (row + before[0], *before[1:])
            yield slice(row, row + rows), _logits(plan.head, total, plan.cover, first, corner, (rows, *size[1:]))
        total = _drop(total, after - first)


def compile_ahead(
    models: Sequence[Model],
    like: Volume | jax.ShapeDtypeStruct,
    *,
    overlap: float | int = 0.5,
    blend: Blend = "gaussian",
    batch: int = 1,
    flip: Flip | None = None,
) -> None:
    """Compiles the networks for `segment` on volumes like this one with the same settings, e.g. while the first volume is read."""
    for model in models:
        for flip_axis in (None, flip.axis) if flip else (None,):
            _planned(model, like, overlap, blend, batch, flip_axis)


class _Plan(NamedTuple):
    """The windows of a volume, and the compiled network that adds them up."""

    whole: Size  # the padded volume's
    before: Size  # padding before the volume
    starts: list[int]  # of windows along x
    firsts: list[int]  # the first row of `total` for each start
    calls: Int[np.ndarray, "calls b 2"]  # corners of windows in y and z, by call of the network
    live: Bool[np.ndarray, "calls b"]  # False for windows that only fill up a batch
    add: Callable[..., jax.Array]  # (total, volume, weight, start, first, places, live) → total
    head: Any
    total: jax.Array  # weighted sums of maps or logits, of the rows in progress
    weight: jax.Array  # of a window's voxels
    cover: jax.Array  # the sum of the weights of all windows


def _planned(
    model: Model, volume: Volume | jax.ShapeDtypeStruct, overlap: float | int, blend: Blend, batch: int, flip_axis: int | None
) -> _Plan:
    if not 0 <= overlap < 1 or batch < 1:
        raise InputError(f"overlap {overlap}, batch {batch}: give an overlap from 0 to below 1, and a batch of 1 or more")
    network, window = model.network, model.window
    whole, before, at = _places(volume.shape[:3], window, overlap, flip_axis)
    calls, live = _calls(np.array(list(product(*at[1:]))), batch)
    # `total` begins at a multiple of ROWS: so slabs are the same for every window size.
    firsts = [start // ROWS * ROWS for start in at[0]]
    kept = max(start - first for start, first in zip(at[0], firsts, strict=True)) + window[0]
    params = jax.device_put(model.params)
    here = _beside(params)
    channels, dtype = len(params["head"]["kernel"]), jnp.promote_types(network.dtype, jnp.float32)
    weight = blend_weights(window, blend).astype(dtype)
    weight, cover = jax.device_put((weight, _cover(whole, at, weight)), here)
    total = jnp.zeros((kept, *whole[1:], min(channels, network.classes)), dtype, device=here)
    padded = jax.ShapeDtypeStruct((*whole, volume.shape[-1]), volume.dtype, sharding=here)
    add, fixed = _compiled_add(here), (network, window, flip_axis, params)
    add.lower(*fixed, total, padded, weight, 0, 0, calls[0], live[0]).compile()
    trim_memory()
    return _Plan(whole, before, at[0], firsts, calls, live, partial(add, *fixed), params["head"], total, weight, cover)


def window_starts(size: int, window: int, overlap: float | int) -> list[int]:
    """The first voxel of each window on an axis of `size` ≥ `window` voxels: MONAI's rule, the last window moved back inside."""
    step = max(int(window * (1 - overlap)), 1)
    return [min(i * step, size - window) for i in range(ceil((size - window) / step) + 1)]


def blend_weights(window: Size, blend: Blend) -> Float[np.ndarray, "x y z"]:
    """Weights of a window's voxels: ones, or a centred Gaussian of sigma side / 8, at least 0.001 (as in MONAI)."""
    if blend == "constant":
        return np.ones(window)
    x, y, z = (np.exp(-np.square((np.arange(n) - (n - 1) / 2) / (0.125 * n)) / 2) for n in window)
    return np.maximum(x[:, None, None] * y[:, None] * z, 1e-3)


def _places(size: Size, window: Size, overlap: float | int, flip_axis: int | None) -> tuple[Size, Size, list[list[int]]]:
    """The padded size, the padding before, and the starts of windows, per axis, for the volume or its flip."""
    whole = tuple(max(n, w) for n, w in zip(size, window, strict=True))
    before = [(p - n) // 2 for n, p in zip(size, whole, strict=True)]
    at = [window_starts(p, w, overlap) for p, w in zip(whole, window, strict=True)]
    if flip_axis is not None:
        before[flip_axis] = whole[flip_axis] - size[flip_axis] - before[flip_axis]
        at[flip_axis] = [whole[flip_axis] - window[flip_axis] - start for start in reversed(at[flip_axis])]
    return whole, tuple(before), at


def _cover(whole: Size, at: Sequence[Sequence[int]], weight: np.ndarray) -> np.ndarray:
    """The sum over windows of their weights at each voxel."""
    cover = np.zeros(whole, weight.dtype)
    for corner in product(*at):
        cover[tuple(slice(start, start + n) for start, n in zip(corner, weight.shape, strict=True))] += weight
    return cover


def _calls(places: Int[np.ndarray, "n 2"], batch: int) -> tuple[Int[np.ndarray, "calls b 2"], Bool[np.ndarray, "calls b"]]:
    """Places divided evenly over as few calls as possible, and a mask that is False for those that only fill up the last batch."""
    calls = ceil(len(places) / batch)
    per_call = ceil(len(places) / calls)
    live = np.arange(calls * per_call) < len(places)
    return places[np.where(live, np.arange(len(live)), 0)].reshape(calls, per_call, 2), live.reshape(calls, per_call)


def _beside(params: Any) -> jax.sharding.Sharding:
    """The sharding of arrays used with these parameters: their device, or replicated over their mesh."""
    sharding = jax.tree.leaves(params)[0].sharding
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding


def _features(network, params, windows):
    return network.apply({"params": params}, windows, method="features")


def _head(head, x):
    kernel, bias = head["kernel"].astype(x.dtype), head["bias"].astype(x.dtype)
    return x @ kernel + jnp.expand_dims(bias, range(x.ndim - 1))


@lru_cache
def _compiled_add(here: jax.sharding.Sharding):
    # Scheduled for memory: by default, for concurrency, convolutions are a tenth to a third faster and take up to a half more memory.
    # Its highest optimisation level takes a quarter longer to compile, and no window is faster.
    options = None
    if jax.default_backend() == "cpu":
        options = known_options(xla_cpu_scheduler_type="CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED", xla_backend_optimization_level=1)
    return jax.jit(_add, static_argnums=(0, 1, 2), donate_argnames="total", out_shardings=here, compiler_options=options)


def _add(network, window, flip_axis, params, total, volume, weight, start, first, places, live):
    """`total`, which begins at row `first`, plus the weighted maps or logits of the windows at (start, *place)."""
    windows = jax.vmap(lambda place: jax.lax.dynamic_slice(volume, (start, *place, 0), (*window, volume.shape[-1])))(places)
    flipped = partial(jnp.flip, axis=() if flip_axis is None else flip_axis + 1)
    maps = flipped(_features(network, params, flipped(windows)))
    # In parts, so that weighted maps or logits of a whole window are never in memory.
    rows = max(n for n in range(1, ROWS + 1) if window[0] % n == 0)
    parts = window[0] // rows

    def add(i, total):
        which, row = i // parts, i % parts * rows
        part = jax.lax.dynamic_slice(maps, (which, row, 0, 0, 0), (1, rows, *maps.shape[2:]))[0].astype(total.dtype)
        if total.shape[-1] == network.classes:
            part = _head(params["head"], part)
        part = part * (jax.lax.dynamic_slice_in_dim(weight, row, rows) * live[which])[..., None]
        corner = (start - first + row, *places[which], 0)
        return jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, corner, part.shape) + part, corner)

    return jax.lax.fori_loop(0, len(maps) * parts, add, total)


@partial(jax.jit, static_argnames="shape")
def _logits(head, total, cover, first, corner, shape):
    """Blended logits of a part of the volume."""
    x, *yz = corner
    part = jax.lax.dynamic_slice(total, (x - first, *yz, 0), (*shape, total.shape[-1]))
    part = part / jax.lax.dynamic_slice(cover, corner, shape)[..., None]
    return part if part.shape[-1] == head["bias"].size else _head(head, part)


@partial(jax.jit, donate_argnames="total")
def _drop(total, rows):
    """`total` without its first rows: the others move up in place, followed by zeros."""

    def move(i, total):
        row = jax.lax.dynamic_slice_in_dim(total, i + rows, 1)
        return jax.lax.dynamic_update_slice_in_dim(total, jnp.where(i + rows < len(total), row, 0), i, 0)

    return jax.lax.fori_loop(0, len(total), move, total)


@jax.jit
def _decide(logits, partners):
    """(labels, sums of probabilities, probabilities) from the logits of views, with the class partners of flipped ones."""
    views = [jax.nn.softmax(view) for view in logits]
    # Permuted only if flipped: on a CPU it takes longer than all the rest.
    views = [view if partner is None else view[..., partner] for view, partner in zip(views, partners, strict=True)]
    probabilities = sum(views) / len(views)
    # A single view is decided by its logits, which may differ where softmax rounds to equal probabilities.
    labels = jnp.argmax(logits[0] if len(logits) == 1 else probabilities, axis=-1)
    small = jnp.uint8 if probabilities.shape[-1] <= 256 else jnp.uint16
    return labels.astype(small), jnp.sum(probabilities, axis=(0, 1, 2)), probabilities
