"""Meshes: what does not fit is refused with what would; and however arrays lie, training is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from brainseg_jax import sharding
from brainseg_jax.errors import InputError
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.optim import optimizer
from brainseg_jax.sharding import batch_sharding, check_batch, make_mesh, state_sharding
from brainseg_jax.step import init_params, init_state, make_train_step


def mesh(data, fsdp):
    return make_mesh(data, fsdp, jax.devices()[: data * fsdp])


def test_there_are_eight_devices():
    assert len(jax.devices()) == 8


@pytest.mark.parametrize(("asked", "shape"), [((-1, 1), (8, 1)), ((1, -1), (1, 8)), ((-1, 2), (4, 2)), ((2, 4), (2, 4)), ((2, 2), (2, 2))])
def test_minus_one_is_what_is_left(asked, shape):
    made = make_mesh(*asked, jax.devices())
    assert made.axis_names == ("data", "fsdp") and made.devices.shape == shape and set(made.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("asked", [(3, 1), (16, 1), (-1, 3), (-1, 0), (0, -1), (4, 4), (-2, 1)])
def test_a_mesh_that_does_not_fit_is_refused(asked):
    with pytest.raises(InputError, match=r"mesh\.data .* and mesh\.fsdp .* do not fit 8 devices; .* divide 8"):
        make_mesh(*asked, jax.devices())


def test_only_one_axis_can_be_what_is_left():
    with pytest.raises(InputError, match=r"mesh\.fsdp=1"):
        make_mesh(-1, -1, jax.devices())


@pytest.mark.parametrize(("batch", "accumulate", "nearest"), [(7, 1, 8), (3, 1, 8), (13, 1, 16), (20, 2, 16), (40, 4, 32)])
def test_a_batch_that_does_not_divide_is_told_the_nearest_that_does(batch, accumulate, nearest):
    with pytest.raises(InputError, match=rf"data\.batch {batch} .* use e\.g\. {nearest}$"):
        check_batch(batch, accumulate, mesh(4, 2))


def test_a_batch_that_divides_passes():
    check_batch(16, 2, mesh(4, 2))


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((256, 512), (None, "fsdp")),
        ((512, 256), ("fsdp",)),
        ((512, 512), (None, "fsdp")),
        ((12, 768, 2304), (None, None, "fsdp")),
        ((1000, 70), ("fsdp",)),
        ((257, 1001), ()),  # nothing divides by four
        ((65_532,), ()),  # small
        ((), ()),
    ],
)
def test_the_largest_axis_that_divides_is_cut(shape, spec):
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert state_sharding(mesh(2, 4), {"a": leaf})["a"].spec == PartitionSpec(*spec)
    assert state_sharding(mesh(8, 1), {"a": leaf})["a"].spec == PartitionSpec()


def test_batches_are_cut_over_all_devices():
    array = jax.device_put(np.zeros((8, 3)), batch_sharding(mesh(2, 4)))
    assert {shard.data.shape for shard in array.addressable_shards} == {(1, 3)} and len(array.addressable_shards) == 8


def trained(config, shape, images):
    """Losses and parameters after three steps on a mesh of that shape."""
    objective, m = OBJECTIVES["mae"](config), mesh(*shape)
    one = {"image": jnp.zeros((1, *config.data.crop, 1))}
    params = jax.eval_shape(lambda: init_params(objective, one, 0))
    tx = optimizer(config.optim, 10, params)
    init = lambda: init_state(init_params(objective, one, 0), tx)  # noqa: E731
    places = state_sharding(m, jax.eval_shape(init))
    state = jax.jit(init, out_shardings=places)()
    step = jax.jit(make_train_step(objective, tx, lambda _, batch: batch, 0), donate_argnums=0, out_shardings=(places, None))
    losses = []
    for batch in images:
        state, metrics = step(state, {"image": jax.device_put(batch, batch_sharding(m))})
        losses.append(metrics["loss"][0])
    cut = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    return jax.device_get((losses, state.params)), cut


@pytest.mark.slow
def test_training_is_the_same_on_every_mesh(small, rng, close, monkeypatch):
    """Everything that can be cut is cut; what differs is the order of summing."""
    monkeypatch.setattr(sharding, "SMALLEST_CUT", 1)
    # Without biases of keys: their gradient is zero but for rounding, which Adam scales up.
    config = small(**{"optim.warmup": 0.0, "vit.depth": 1, "vit.qkv_bias": False})
    images = rng.uniform(size=(3, 8, *config.data.crop, 1)).astype(np.float32)
    alone, cut = trained(config, (1, 1), images)
    assert cut == 0
    for shape in ((8, 1), (1, 8), (2, 4)):
        result, cut = trained(config, shape, images)
        assert (cut > 20) == (shape[1] > 1)
        close(result, alone, times=10)


@pytest.mark.filterwarnings("ignore:.*pmap.*")
def test_a_step_is_that_of_pmap(rng, close):
    """Data-parallel by pmap, averaging gradients over devices, for a loss that is a mean over samples."""
    x, y = rng.normal(size=(8, 2, 3)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)

    class Line:
        streams, labels = (), False

        def init(self, rngs, batch):
            return {"params": {"w": jnp.ones(3)}}

        def apply(self, variables, batch, train, rngs):
            error = (batch["image"] @ variables["params"]["w"] - batch["y"]) ** 2
            return jnp.mean(error), {"loss": (jnp.sum(error), jnp.float32(error.size))}

    tx, params = optax.adam(0.1), Line().init({}, {})["params"]

    def one(x, y):
        loss = lambda p: Line().apply({"params": p}, {"image": x, "y": y}, True, {})[0]  # noqa: E731
        gradient = jax.lax.pmean(jax.grad(loss)(params), "data")
        return optax.apply_updates(params, tx.update(gradient, tx.init(params), params)[0])

    theirs = jax.tree.map(lambda leaf: leaf[0], jax.pmap(one, axis_name="data")(x, y))
    rows = batch_sharding(mesh(8, 1))
    batch = {"image": jax.device_put(x.reshape(16, 3), rows), "y": jax.device_put(y.reshape(16), rows)}
    ours, _ = jax.jit(make_train_step(Line(), tx, lambda _, batch: batch, 0))(init_state(params, tx), batch)
    close(ours.params, jax.device_get(theirs))
