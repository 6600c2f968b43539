"""The training step as a pure function of (state, batch), and the evaluation step.

Random streams are folded from (seed, step), so no random state is stored. Nothing here queries devices or calls back to Python: the same
function can be compiled for hardware that is not present.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

Batch = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name: (sum, count)
Totals = dict[str, Sequence[float]]  # sums over several steps, in double precision


@runtime_checkable
class Objective(Protocol):
    """A Flax module from a batch to (loss, metrics).

    `streams` names its random streams, `labels` says whether it needs labels. For `train` it also has `metrics`, the names of its
    evaluation metrics, and, unless it is evaluated on whole volumes, a method `pictures(batch)`: the volumes [b x y z c] named by its
    `picture_names`, to be drawn.
    """

    labels: bool
    streams: tuple[str, ...]

    def init(self, rngs: dict[str, jax.Array], batch: Batch) -> Any: ...

    def apply(self, variables: Any, batch: Batch, train: bool, rngs: dict[str, jax.Array]) -> tuple[jax.Array, Metrics]: ...


class TrainState(NamedTuple):
    """The state of training, carried from step to step."""

    step: Any
    params: Any
    opt_state: Any


def init_params(objective: Objective, batch: Batch, seed: int) -> Any:
    """Initial parameters: a function of the seed and the batch's shapes."""
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
    """The step (state, batch) → (next state, metrics). `prepare(key, batch)` augments on the device; `gather(params)` gathers sharded ones.

    With `accumulate` = k the batch is processed in k parts and gradients are averaged: the same step if the loss is a mean over samples; a
    loss that couples samples sees k smaller batches.
    """

    def gradient(params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        augment, *keys = jax.random.split(key, 1 + len(objective.streams))
        rngs = dict(zip(objective.streams, keys, strict=True))

        def loss(params: Any) -> tuple[jax.Array, Metrics]:
            return objective.apply({"params": gather(params)}, prepare(augment, batch), True, rngs=rngs)

        return jax.grad(loss, has_aux=True)(params)

    def accumulated(params: Any, batch: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        # Every k-th sample goes into the same part, so that no sample changes its device.
        parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(a.shape[0] // accumulate, accumulate, *a.shape[1:]), 1, 0), batch)

        def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *part)), None

        like = jax.eval_shape(gradient, params, jax.tree.map(lambda a: a[0], parts), key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        (grads, metrics), _ = jax.lax.scan(add, zeros, (parts, jax.random.split(key, accumulate)))
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
    """The evaluation step (params, batch, index) → metrics. Its random draws depend on the seed and the batch's index only."""

    def eval_step(params: Any, batch: Batch, index: jax.Array) -> Metrics:
        key, rngs = eval_streams(objective, seed, index)
        return objective.apply({"params": params}, prepare(key, batch), False, rngs=rngs)[1]

    return eval_step


def eval_streams(objective: Objective, seed: int, index: jax.Array | int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The key and the random streams of evaluation batch `index`."""
    key = jax.random.fold_in(jax.random.key(seed + 1), index)
    return key, dict(zip(objective.streams, jax.random.split(key, len(objective.streams)), strict=True))


def totals(metrics: Sequence[Metrics], before: Totals | None = None) -> Totals:
    """Sum and count of each metric over steps, added in order to those of `before`: bit-identical however a list of steps is divided.
    Waits for the device."""
    total = dict(before or {})
    for step in jax.device_get(list(metrics)):
        for name, pair in step.items():
            total[name] = tuple(a + float(b) for a, b in zip(total.get(name, (0.0, 0.0)), pair, strict=True))
    return total


def means(totals: Totals) -> dict[str, float]:
    """sum / count of each metric; NaN for a count of 0."""
    return {name: number / count if count else float("nan") for name, (number, count) in totals.items()}


def averaged(metrics: Sequence[Metrics]) -> dict[str, float]:
    """The mean of each metric over a list of steps."""
    return means(totals(metrics))
