"""One training step as a pure function of (state, batch): the only place where gradients are taken.

Random streams are folded from (seed, step), so nothing random is stored. Nothing here asks which devices there are and nothing calls
back to Python: the very same function can be compiled for hardware that is not there.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

Batch = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name: (sum, count)
Totals = dict[str, Sequence[float]]  # the same over several steps, in double precision


@runtime_checkable
class Objective(Protocol):
    """A Flax module from a batch to (loss, metrics).

    `streams` names the random streams it draws from, `labels` says if it needs labels. What `train` trains also has `metrics`,
    the names of what evaluation gives, and, where that is not of whole volumes, a method `pictures(batch)`, which gives the volumes
    [b x y z c] that its `picture_names` name, for people to look at.
    """

    labels: bool
    streams: tuple[str, ...]

    def init(self, rngs: dict[str, jax.Array], batch: Batch) -> Any: ...

    def apply(self, variables: Any, batch: Batch, train: bool, rngs: dict[str, jax.Array]) -> tuple[jax.Array, Metrics]: ...


class TrainState(NamedTuple):
    """All that a run carries from step to step."""

    step: Any
    params: Any
    opt_state: Any


def init_params(objective: Objective, batch: Batch, seed: int) -> Any:
    """Initial parameters; a function of the seed and of the batch's shapes only."""
    names = ("params", *objective.streams)
    keys = {name: jax.random.fold_in(jax.random.key(seed), i) for i, name in enumerate(names)}
    return objective.init(keys, batch)["params"]


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first batch."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[jax.Array, Batch], Batch],
    seed: int,
    accumulate: int = 1,
    gather: Callable[[Any], Any] = lambda params: params,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """(state, batch) → (next state, metrics). `prepare(key, batch)` augments on the device; `gather(params)` makes cut parameters whole.

    With `accumulate` = k the batch is cut into k parts, taken one after the other, and gradients are averaged: the same step for every
    loss that is a mean over samples; one that couples samples sees k smaller batches.
    """

    def gradient(params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        augment, *keys = jax.random.split(key, 1 + len(objective.streams))
        rngs = dict(zip(objective.streams, keys, strict=True))

        def loss(params: Any) -> tuple[jax.Array, Metrics]:
            return objective.apply({"params": gather(params)}, prepare(augment, batch), True, rngs=rngs)

        return jax.grad(loss, has_aux=True)(params)

    def accumulated(params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        # Every k-th sample goes into the same part, so that each device keeps its own samples.
        parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(a.shape[0] // accumulate, accumulate, *a.shape[1:]), 1, 0), batch)

        def one(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *part)), None

        like = jax.eval_shape(gradient, params, jax.tree.map(lambda a: a[0], parts), key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        (grads, metrics), _ = jax.lax.scan(one, zeros, (parts, jax.random.split(key, accumulate)))
        return jax.tree.map(lambda g: g / accumulate, grads), metrics

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, metrics = (gradient if accumulate == 1 else accumulated)(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {"gradient_norm": (optax.tree.norm(grads), jnp.ones(()))}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_eval_step(
    objective: Objective, prepare: Callable[[jax.Array, Batch], Batch], seed: int
) -> Callable[[Any, Batch, jax.Array], Metrics]:
    """(params, batch, index) → metrics. Draws depend on the seed and the batch's index only: every evaluation asks the same questions."""

    def eval_step(params: Any, batch: Batch, index: jax.Array) -> Metrics:
        key, rngs = eval_streams(objective, seed, index)
        return objective.apply({"params": params}, prepare(key, batch), False, rngs=rngs)[1]

    return eval_step


def eval_streams(objective: Objective, seed: int, index: jax.Array | int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The key and the random streams of evaluation batch `index`."""
    key = jax.random.fold_in(jax.random.key(seed + 1), index)
    return key, dict(zip(objective.streams, jax.random.split(key, len(objective.streams)), strict=True))


def totals(metrics: Sequence[Metrics], before: Totals | None = None) -> Totals:
    """Sum and count of each metric over steps, added one after the other to those from `before`: the same to the bit wherever a list of
    steps is cut in two. Waits for the device, so it is called between steps, seldom."""
    total = dict(before or {})
    for step in jax.device_get(list(metrics)):
        for name, pair in step.items():
            number, count = map(float, pair)
            total[name] = (total[name][0] + number, total[name][1] + count) if name in total else (number, count)
    return total


def means(totals: Totals) -> dict[str, float]:
    """sum / count of each metric; NaN where nothing was counted."""
    return {name: number / count if count else float("nan") for name, (number, count) in totals.items()}


def averaged(metrics: Sequence[Metrics]) -> dict[str, float]:
    """The mean of each metric over a list of steps."""
    return means(totals(metrics))
