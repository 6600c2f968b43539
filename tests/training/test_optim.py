"""The optimizer: hand-computed rates, optax's clipping, PyTorch's AdamW, decay and rates by path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from peers import peer

from brainseg_jax.config.keys import base
from brainseg_jax.core.errors import InputError
from brainseg_jax.core.pytree import paths
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.training.optim import clip, optimizer, schedule
from brainseg_jax.training.step import init_params

torch = peer("torch")


def settings(**changes):
    c = base().optim
    c.update(changes)
    return c


@pytest.mark.parametrize(
    ("warmup", "rates"),
    [
        (0.1, {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 100: 0.0, 25: 0.5 + 0.5 * np.cos(np.pi / 6)}),
        (0.0, {0: 1.0, 50: 0.5, 100: 0.0}),
        (0.5, {25: 0.5, 50: 1.0, 75: 0.5}),
    ],
)
def test_schedule_by_hand(warmup, rates):
    rate = schedule(settings(lr=2.0, warmup=warmup), 100)
    for step, value in rates.items():
        assert float(rate(step)) == pytest.approx(2.0 * value, abs=1e-6)


@pytest.mark.parametrize("size", [0.0, 0.3, 1.0, 50.0])
def test_clip_is_that_of_optax(rng, close, size):
    tree = {"a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "b": jnp.asarray(rng.normal(size=5), jnp.float32)}
    norm = optax.tree.norm(tree)
    tree = jax.tree.map(lambda a: a * size / norm, tree)
    ours, theirs = (t.update(tree, t.init(tree))[0] for t in (clip(1.0), optax.clip_by_global_norm(1.0)))
    close(ours, theirs)


@pytest.mark.parity
def test_is_adamw_of_pytorch(x64, rng, close):
    c = settings(lr=1e-2, warmup=0.25, weight_decay=0.1, clip=0.0)
    start, gradients = rng.normal(size=(3, 2)), rng.normal(size=(6, 3, 2))
    params = {"kernel": jnp.asarray(start)}
    tx, rate = optimizer(c, 6, params), schedule(c, 6)
    state = tx.init(params)
    theirs = torch.tensor(start, requires_grad=True)
    adamw = torch.optim.AdamW([theirs], betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step, gradient in enumerate(gradients):
        updates, state = tx.update({"kernel": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        adamw.param_groups[0]["lr"] = float(rate(step))
        theirs.grad = torch.tensor(gradient)
        adamw.step()
    assert np.abs(params["kernel"] - start).max() > 0.01
    close(params["kernel"], theirs.detach().numpy(), "float64", times=100)  # the rate itself is computed in float32 steps


def changed_without_gradient(config, params):
    """Paths of the parameters that weight decay alone moves."""
    tx = optimizer(config, 10, params)
    zeros = jax.tree.map(np.zeros_like, params)
    updates = jax.jit(lambda: tx.update(zeros, tx.init(params), params)[0])()
    return {path for path, leaf in paths(updates).items() if np.abs(leaf).max() > 0}


def mae_params(small):
    config = small()
    image = {"image": jnp.zeros((1, *config.data.crop, 1))}
    shapes = jax.eval_shape(lambda: init_params(OBJECTIVES["mae"](config), image, 0))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)


def test_kernels_decay_and_biases_norms_and_tokens_do_not(small):
    params = mae_params(small)
    moved = changed_without_gradient(settings(warmup=0.0), params)
    assert moved == {path for path in paths(params) if path.endswith("/kernel")}
    assert "encoder/blocks/attn/qkv/kernel" in moved and "blocks/mlp/linear1/kernel" in moved and len(moved) < len(paths(params))


def test_rate_zero_freezes_and_others_scale(small, close):
    params = mae_params(small)
    gradient = jax.tree.map(np.ones_like, params)
    rates = ((r"encoder/patch_embed/.*", 0.0), (r"encoder/.*", 0.5))
    plain, scaled = (optimizer(settings(warmup=0.0, lr_multipliers=r), 10, params) for r in ((), rates))
    full, part = (paths(jax.jit(lambda tx=tx: tx.update(gradient, tx.init(params), params)[0])()) for tx in (plain, scaled))
    for path, update in full.items():
        factor = 0.0 if path.startswith("encoder/patch_embed/") else 0.5 if path.startswith("encoder/") else 1.0
        close(part[path], update * factor)


@pytest.mark.parametrize(("key", "value"), [("decay", (r".*weight",)), ("lr_multipliers", ((r"decoder/.*", 0.0),))])
def test_a_pattern_that_matches_nothing_is_refused_by_key(key, value):
    with pytest.raises(InputError, match=rf"^optim\.{key}: "):
        optimizer(settings(**{key: value}), 10, {"a": {"kernel": jnp.ones(2)}})


def test_no_decay_patterns_no_decay():
    params = {"a": {"kernel": jnp.ones(2)}}
    assert changed_without_gradient(settings(warmup=0.0, decay=()), params) == set()


@pytest.mark.parametrize(("warmup", "steps"), [(0.75, 2), (0.95, 5), (0.6, 1)])
def test_a_warm_up_that_rounds_to_all_steps_is_refused_by_name(warmup, steps):
    c = base().optim
    c.warmup = warmup
    with pytest.raises(InputError, match=rf"^optim\.warmup {warmup:g} of {steps} steps is all of them"):
        schedule(c, steps)
    schedule(c, 100)
