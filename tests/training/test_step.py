"""One step: pure in (seed, step), the same in parts as at once, and its metrics are sums and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.training.step import init_params, init_state, make_eval_step, make_train_step


class Line:
    """y = w x + c by least squares: a loss that is a mean over samples, and nothing random."""

    streams, labels = (), False

    def init(self, rngs, batch):
        return {"params": {"w": jnp.full((2,), 0.5), "c": jnp.zeros(())}}

    def apply(self, variables, batch, train, rngs):
        p = variables["params"]
        error = (batch["image"] @ p["w"] + p["c"] - batch["y"]) ** 2
        return jnp.mean(error), {"loss": (jnp.sum(error), jnp.float32(error.shape[0]))}


def same(key, batch):
    return batch


def points(rng, n=8):
    return {"image": jnp.asarray(rng.normal(size=(n, 2)), jnp.float32), "y": jnp.asarray(rng.normal(size=n), jnp.float32)}


@pytest.mark.optimised
def test_a_step_by_hand(rng, close):
    batch, objective, tx = points(rng), Line(), optax.sgd(0.1)
    state, metrics = jax.jit(make_train_step(objective, tx, same, 0))(init_state(objective.init({}, batch)["params"], tx), batch)
    x, y = np.asarray(batch["image"]), np.asarray(batch["y"])
    error = x @ [0.5, 0.5] - y
    slope = 2 * error @ x / 8, 2 * error.mean()
    close(state.params, {"w": 0.5 - 0.1 * slope[0], "c": -0.1 * slope[1]})
    close(metrics["loss"], (np.sum(error**2), np.float32(8)))
    close(metrics["gradient_norm"], (np.sqrt(slope[0] @ slope[0] + slope[1] ** 2), np.float32(1)))
    assert int(state.step) == 1


@pytest.mark.optimised
@pytest.mark.parametrize("parts", [2, 4])
def test_in_parts_as_at_once(rng, close, parts):
    batch, objective, tx = points(rng), Line(), optax.adam(0.1)
    state = init_state(objective.init({}, batch)["params"], tx)
    once, cut = (jax.jit(make_train_step(objective, tx, same, 0, accumulate=k))(state, batch) for k in (1, parts))
    close(cut, once)


@pytest.fixture
def mae(small, rng):
    config = small()
    objective, tx = OBJECTIVES["mae"](config), optax.sgd(0.1)
    batch = {"image": jnp.asarray(rng.uniform(size=(2, *config.data.crop, 1)), jnp.float32)}
    return objective, tx, batch


def test_same_seed_and_step_same_result_another_step_other_masks(mae):
    objective, tx, batch = mae
    state = jax.jit(lambda: init_state(init_params(objective, batch, 0), tx))()
    step = jax.jit(make_train_step(objective, tx, same, 0))
    first, again, later = step(state, batch), step(state, batch), step(state._replace(step=state.step + 1), batch)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert float(later[1]["loss"][0]) != float(first[1]["loss"][0])
    other = jax.jit(make_train_step(objective, tx, same, 1))(state, batch)
    assert float(other[1]["loss"][0]) != float(first[1]["loss"][0])


def test_initial_parameters_are_the_seeds(mae):
    objective, _, batch = mae
    one, again, other = (jax.jit(init_params, static_argnums=(0, 2))(objective, batch, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one["mask_token"], other["mask_token"])
    wider = {"image": jnp.ones((5, *batch["image"].shape[1:]))}
    jax.tree.map(np.testing.assert_array_equal, one, jax.jit(init_params, static_argnums=(0, 2))(objective, wider, 0))


def test_a_state_that_is_given_away_trains_on(rng):
    batch, objective, tx = points(rng), Line(), optax.adam(0.1)
    kept = given = init_state(objective.init({}, batch)["params"], tx)
    given = jax.tree.map(jnp.copy, given)
    step = make_train_step(objective, tx, same, 0)
    plain, donating = jax.jit(step), jax.jit(step, donate_argnums=0)
    for _ in range(3):
        before = given
        kept, given = plain(kept, batch)[0], donating(given, batch)[0]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    jax.tree.map(np.testing.assert_array_equal, kept, given)


def test_training_is_told_that_it_trains_and_augments_with_the_steps_key(rng):
    seen = []

    class Listener(Line):
        def apply(self, variables, batch, train, rngs):
            seen.append(train)
            return super().apply(variables, batch, train, rngs)

    def shifted(key, batch):
        return batch | {"y": batch["y"] + jax.random.normal(key, ())}

    batch, tx = points(rng), optax.sgd(0.0)
    state = init_state(Line().init({}, batch)["params"], tx)
    step = jax.jit(make_train_step(Listener(), tx, shifted, 0))
    losses = [float(step(state._replace(step=jnp.int32(i)), batch)[1]["loss"][0]) for i in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1] and seen == [True]
    make_eval_step(Listener(), same, 0)(state.params, batch, jnp.int32(0))
    assert seen == [True, False]


def test_evaluation_asks_the_same_questions_each_time(mae):
    objective, _, batch = mae
    params = jax.jit(lambda: init_params(objective, batch, 0))()
    step = jax.jit(make_eval_step(objective, same, 0))
    first, again, second = (float(step(params, batch, jnp.int32(i))["loss"][0]) for i in (0, 0, 1))
    assert first == again != second
