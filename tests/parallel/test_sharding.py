"""Meshes: what does not fit is refused with what would; and however arrays lie, training is the same."""

import os
import re
from functools import lru_cache
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden.placements import HERE, PRESETS, placements
from jax.sharding import AxisType, PartitionSpec

from brainseg_jax.core.errors import InputError
from brainseg_jax.data.augment.prepare import prepare_train
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.parallel import sharding
from brainseg_jax.parallel.sharding import batch_sharding, check_batch, make_mesh, on_one_device, replicated, state_sharding
from brainseg_jax.training.optim import optimizer
from brainseg_jax.training.program import parts_of_batch, sample_of
from brainseg_jax.training.step import init_params, init_state, make_train_step

MESHES = {"mae": ((8, 1), (1, 8), (2, 4)), "ssl": ((2, 4),), "segmentation": ((2, 4),), "u_net": ((2, 4),)}
if os.environ.get("BRAINSEG_ALL_MESHES"):  # a quarter of an hour
    MESHES = dict.fromkeys(MESHES, MESHES["mae"])


def mesh(data, fsdp):
    return make_mesh(data, fsdp, jax.devices()[: data * fsdp])


def test_there_are_eight_devices():
    assert len(jax.devices()) == 8


@pytest.mark.parametrize(("asked", "shape"), [((-1, 1), (8, 1)), ((1, -1), (1, 8)), ((-1, 2), (4, 2)), ((2, 4), (2, 4)), ((2, 2), (2, 2))])
def test_minus_one_is_what_is_left(asked, shape):
    made = make_mesh(*asked, jax.devices())
    assert made.axis_names == ("data", "fsdp") and made.devices.shape == shape and set(made.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("asked", "near"),
    [((3, 1), (4, 1)), ((16, 1), (8, 1)), ((-1, 3), (2, 4)), ((-1, 0), (8, 1)), ((0, -1), (1, 8)), ((4, 4), (2, 4)), ((-2, 1), (1, 1))],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_nearest_that_does(asked, near):
    said = r"mesh\.data .* and mesh\.fsdp .* do not fit 8 devices; .* divide 8: use e\.g\. mesh\.data={} and mesh\.fsdp={}$".format(*near)
    with pytest.raises(InputError, match=said):
        make_mesh(*asked, jax.devices())
    assert make_mesh(*near, jax.devices()).devices.shape == near


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


def test_crops_of_a_volume_are_read_together():
    check_batch(24, 1, mesh(4, 2), 3)
    with pytest.raises(InputError, match=r"data\.batch 16 .* 1 processes × 3 crops of a volume; use e\.g\. 24$"):
        check_batch(16, 1, mesh(4, 2), 3)


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec(None, "fsdp")])
def test_one_device_gets_the_whole(rng, spec):
    array = rng.normal(size=(8, 4)).astype(np.float32)
    here = on_one_device({"a": jax.device_put(array, jax.NamedSharding(mesh(2, 4), spec))})["a"]
    assert len(here.devices()) == 1
    np.testing.assert_array_equal(here, array)


def test_batches_are_cut_over_all_devices():
    array = jax.device_put(np.zeros((8, 3)), batch_sharding(mesh(2, 4)))
    assert {shard.data.shape for shard in array.addressable_shards} == {(1, 3)} and len(array.addressable_shards) == 8


@pytest.mark.parametrize("samples", [8, 6])
def test_samples_are_computed_where_they_lie(rng, samples):
    """By a gather, which the partitioner would do for all samples everywhere; where they do not divide over the mesh, as without one."""
    array, m = rng.normal(size=(samples, 5, 7)), mesh(2, 4)
    pick = jax.vmap(lambda a, i: jax.lax.dynamic_slice(a, (i, 0), (2, 7)) * 2)
    index = jnp.arange(samples) % 4
    rows = batch_sharding(m) if samples == 8 else replicated(m)
    with jax.set_mesh(m):
        lowered = jax.jit(sharding.per_device(pick), in_shardings=rows, out_shardings=rows).lower(array, index)
    compiled = lowered.compile()
    np.testing.assert_array_equal(compiled(jax.device_put(array, rows), jax.device_put(index, rows)), pick(array, index))
    assert not list(moved(compiled.as_text())) and (samples == 6 or "[8,5,7]" not in compiled.as_text())


@pytest.mark.parametrize("samples", [8, 6])
def test_what_looks_from_sample_to_sample_is_sent_once(rng, samples):
    """Before a loop over them, not in it; where they do not divide over the mesh, as without one."""
    array, m = rng.normal(size=(samples, 5, 7)).astype(np.float32), mesh(2, 4)
    other = jnp.arange(samples)[::-1] // 2

    def mixed(array, other):
        return jax.lax.fori_loop(0, samples, lambda i, done: done.at[i].set(jnp.cumsum(done[other[i]], axis=0)), array)

    rows = batch_sharding(m) if samples == 8 else replicated(m)
    with jax.set_mesh(m):
        compiled = jax.jit(sharding.gather_batch(mixed), in_shardings=rows, out_shardings=rows).lower(array, other).compile()
    np.testing.assert_allclose(compiled(jax.device_put(array, rows), jax.device_put(other, rows)), mixed(array, other), rtol=1e-6)
    assert sorted(moved(compiled.as_text())) == ([("all-gather", 8), ("all-gather", 8 * 5 * 7)] if samples == 8 else [])


BATCH = 8
# Each as small as it can be, in double precision: that the order of summing differs is then all that differs. The key's bias has a gradient
# of zero but for rounding, which Adam would scale up.
SWIN = {"encoder": "swin", "swin.width": 12, "swin.depths": (1, 1), "swin.heads": (3, 6), "swin.window": 4, "swin.qkv_bias": False}
NETWORKS = {
    "mae": {},
    "ssl": {"data.crop": (16, 8, 8), "ssl.embedding": 20} | SWIN,
    "segmentation": {
        "data.crop": (16, 16, 32), "vit.patch": 16, "vit.features": (0, 0, 0), "unetr.width": 4, "data.labels": "brain", "classes": 2,
    },
    "u_net": {
        "objective": "segmentation", "encoder": "resenc", "decoder": "unet", "data.crop": (4, 4, 8), "data.labels": "brain", "classes": 2,
        "unet.features": (12, 20), "unet.blocks": (1, 1), "unet.decoder_blocks": (1,),
    },
}  # fmt: skip
# Widths for which no activation has as many numbers as a parameter.
COMMON = {
    "data.batch": BATCH, "vit.depth": 1, "vit.width": 36, "vit.qkv_bias": False, "mae.width": 20, "optim.warmup": 0.0, "dtype": "float64",
}  # fmt: skip


@lru_cache
def trained(make, name, shape, gather=sharding.gather_params):
    """Losses and parameters after five steps of a network on a mesh of that shape, leaves that are cut, the compiled step's text, and
    the sizes of all parameters."""
    config, m = make(**COMMON | {"objective": name} | NETWORKS[name]), mesh(*shape)
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "MIN_SHARDED", 1)
        # As an accelerator computes: a CPU takes samples one by one in places, and fetches each from where it lies.
        patch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
        objective, one = OBJECTIVES[config.objective](config), sample_of(config)
        one = one | {"image": one["image"].astype(jnp.float64)}
        init = lambda: jax.tree.map(lambda a: a.astype(jnp.float64), init_params(objective, one, 0))  # noqa: E731
        params = jax.eval_shape(init)
        tx = optimizer(config.optim, 10, params)
        places = state_sharding(m, jax.eval_shape(lambda: init_state(init(), tx)))
        state = jax.jit(lambda: init_state(init(), tx), out_shardings=places)()
        step = make_train_step(objective, tx, prepare_train(config, np.arange(2)), 0, gather=gather(places.params))
        rng, losses, compiled = np.random.default_rng(0), [], None
        for _ in range(5):
            batch = {"image": rng.uniform(size=(BATCH, *config.data.crop, 1)), "label": rng.integers(0, 2, (BATCH, *config.data.crop))}
            batch = {part: jax.device_put(batch[part], batch_sharding(m)) for part in parts_of_batch(config)}
            if compiled is None:
                options = {"xla_backend_optimization_level": 1}  # without any, convolutions in double precision take minutes
                with jax.set_mesh(m):
                    lowered = jax.jit(step, donate_argnums=0, out_shardings=(places, replicated(m))).lower(state, batch)
                compiled = lowered.compile(compiler_options=options)
            state, metrics = compiled(state, batch)
            losses.append(metrics["loss"][0])
        cut = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
        return jax.device_get((losses, state.params)), cut, compiled.as_text(), {leaf.size for leaf in jax.tree.leaves(params)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_five_steps_are_the_same_on_every_mesh(small, close, name):
    """Everything that can be cut is cut; what differs is the order of summing."""
    alone, cut, *_ = trained(small, name, (1, 1))
    assert cut == 0 and len(set(map(float, alone[0]))) == 5
    for shape in MESHES[name]:
        result, cut, *_ = trained(small, name, shape)
        assert (cut > 20) == (shape[1] > 1)
        close(result, alone)


def moved(text):
    """(collective, numbers in an array that it gives) for each array of each collective in a compiled program."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all|collective-broadcast"
    for given, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", re.sub(r"/\*.*?\*/", "", text)):
        yield from ((kind, prod(map(int, filter(None, dims.split(","))))) for dims in re.findall(r"\w+\[([\d,]*)\]", given))


def stray(text, sizes, shape, expected=()):
    """What is moved besides parameters and their gradients, whole or cut: all but numbers per sample and `expected`."""
    of_parameters = {size // n for size in sizes for n in (1, shape[1])}
    fine = {"all-reduce", "reduce-scatter"} | ({"all-gather"} if shape[1] > 1 else set())
    return [(kind, n) for kind, n in moved(text) if n > 2 * BATCH and n not in expected and not (kind in fine and n in of_parameters)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_only_parameters_and_gradients_are_moved(small, name):
    """What an objective shares over the batch besides: SSL pastes from other crops, and compares with their embeddings; the gradient of a
    window's table of positions is summed over samples as [heads n n], before it is the table's."""
    crop, windows = 16 * 8 * 8, {3 * 64**2, 6 * 16**2}
    expected = {BATCH * crop, 2 * BATCH * crop, 2 * BATCH * 20} | windows if name == "ssl" else ()
    for shape in MESHES[name]:
        *_, text, sizes = trained(small, name, shape)
        kinds = {kind for kind, _ in moved(text)}
        assert "all-reduce" in kinds and ("all-gather" in kinds or shape[1] == 1)
        assert stray(text, sizes, shape, expected) == []


@pytest.mark.slow
def test_without_gathering_parameters_activations_are_moved(small):
    """What the test above would tell."""
    *_, text, sizes = trained(small, "mae", (1, 8), lambda places: lambda params: params)
    assert ("all-gather", BATCH * 3 * 36) in stray(text, sizes, (1, 8))  # the tokens of all samples


@pytest.mark.parametrize("name", PRESETS)
def test_the_placement_of_every_leaf_is_the_golden_one(name):
    """Changed on purpose: python tests/golden/placements.py writes the files anew."""
    assert placements(name) == (HERE / f"{name}.tsv").read_text()


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
