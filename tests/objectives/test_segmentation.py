"""Segmentation: its parameters are the network's, its loss is the loss of the logits, and padding weighs nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax.core.pytree import paths
from brainseg_jax.models import encoders
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.objectives.losses import dice_cross_entropy, dice_of_present_cross_entropy

UNETR = {
    "objective": "segmentation", "data.labels": "brain", "classes": 3, "data.crop": (16, 16, 32), "vit.patch": 16, "vit.depth": 4,
    "vit.features": (0, 1, 2), "unetr.width": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(small):
    """(objective, network, parameters, batch of two samples) of a small UNETR."""
    config = small(**UNETR)
    objective, network = OBJECTIVES["segmentation"](config), encoders.segmenter(config)
    rng = np.random.default_rng(0)
    batch = {"image": jnp.asarray(rng.uniform(size=(2, 16, 16, 32, 1)), jnp.float32)}
    batch["label"] = jnp.asarray(rng.integers(0, 2, (2, 16, 16, 32)), jnp.uint8)
    return objective, network, jax.jit(objective.init)(jax.random.key(0), batch)["params"], batch


def test_parameters_stand_where_the_network_has_them(made):
    _, network, params, batch = made
    own = jax.eval_shape(network.init, jax.random.key(0), batch["image"])["params"]
    assert {k: v.shape for k, v in paths(params).items()} == {k: v.shape for k, v in paths(own).items()}
    assert set(params) == {"encoder", "decoder", "head"}


@pytest.mark.parametrize(("name", "loss"), [("paper", dice_cross_entropy), ("present", dice_of_present_cross_entropy)])
def test_the_loss_is_that_of_the_logits(made, close, name, loss):
    objective, network, params, batch = made
    value, metrics = objective.clone(loss=name).apply({"params": params}, batch)
    rows = loss(network.apply({"params": params}, batch["image"]), batch["label"].astype(jnp.int32))
    close(value, rows.mean())
    close(metrics["loss"], (rows.sum(), jnp.float32(2)))


def test_padding_weighs_nothing(made, close):
    objective, _, params, batch = made
    alone, _ = objective.apply({"params": params}, jax.tree.map(lambda a: a[:1], batch))
    padded, metrics = objective.apply({"params": params}, batch | {"weight": jnp.array([1.0, 0.0])})
    close(padded, alone)
    assert float(metrics["loss"][1]) == 1


def test_logits_are_the_networks(made, close):
    objective, network, params, batch = made
    close(objective.apply({"params": params}, batch["image"], method="logits"), network.apply({"params": params}, batch["image"]))
