"""The blocks of the decoders: norms whose gradients are written out against PyTorch and JAX's own, and MONAI's blocks number by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer
from torch_trees import first, joining, last, residual, slope, value

from brainseg_jax.models.blocks import ResBlock, UpBlock, activated_norm, affine_norm, instance_norm
from brainseg_jax.models.conv import conv3

torch = peer("torch")
UnetResBlock = peer("monai.networks.blocks.dynunet_block:UnetResBlock")
UnetrUpBlock = peer("monai.networks.blocks.unetr_block:UnetrUpBlock")

SHAPE = (2, 3, 4, 5, 3)
BOTH = pytest.mark.parametrize("dtype", ["float64", "float32"])
SHORTCUT = pytest.mark.parametrize("shortcut", [False, True], ids=["alone", "with a shortcut"])


def draws(rng, count, shape=SHAPE):
    """Volumes whose channels differ in mean and size."""
    c = np.arange(1, shape[-1] + 1)
    return [rng.normal(size=shape) * c + c for _ in range(count)]


def cast(arrays, dtype):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), arrays)


def torchs(f, g, *inputs):
    """The result of a PyTorch function of volumes, and its gradients for the cotangent g."""
    tensors = [first(a) for a in inputs]
    out = f(*tensors)
    out.backward(torch.tensor(np.moveaxis(g, -1, 1)))
    return last(out), [last(t.grad) for t in tensors]


def run(f, g, *inputs):
    """The result of one of ours, and its gradients for the cotangent g."""

    def both(g, *inputs):
        out, pull = jax.vjp(f, *inputs)
        return out, list(pull(g))

    return jax.jit(both)(g, *inputs)


def torch_norm(x, shortcut=0.0):
    return torch.nn.functional.leaky_relu(torch.nn.functional.instance_norm(x, eps=1e-5) + shortcut, 0.01)


def formula(x):
    """Instance norm in one line, for JAX to differentiate."""
    centred = x - jnp.mean(x, (1, 2, 3), keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, (1, 2, 3), keepdims=True) + 1e-5)


def activated_formula(x, shortcut=0.0):
    return jax.nn.leaky_relu(formula(x) + shortcut, 0.01)


@pytest.mark.parity
@BOTH
def test_instance_norm_is_pytorchs(x64, rng, close, dtype):
    x, g = draws(rng, 2)
    expected = torchs(lambda x: torch.nn.functional.instance_norm(x, eps=1e-5), g, x)
    out, grads = run(instance_norm, *cast((g, x), dtype))
    assert out.dtype == grads[0].dtype == jnp.dtype(dtype)
    close((out, grads), expected, dtype)


@pytest.mark.parity
@BOTH
@SHORTCUT
def test_activated_norm_is_pytorchs(x64, rng, close, dtype, shortcut):
    g, *inputs = draws(rng, 3 if shortcut else 2)
    close(run(activated_norm, *cast((g, *inputs), dtype)), torchs(torch_norm, g, *inputs), dtype)


@BOTH
@SHORTCUT
def test_gradients_are_jaxs_own_of_the_formulas(x64, rng, close, dtype, shortcut):
    g, *inputs = cast(draws(rng, 3 if shortcut else 2), dtype)
    close(run(activated_norm, g, *inputs), run(activated_formula, g, *inputs), dtype)
    close(run(instance_norm, g, inputs[0]), run(formula, g, inputs[0]), dtype)


@BOTH
@SHORTCUT
@pytest.mark.parametrize("slope", [0.01, 1.0], ids=["activated", "plain"])
def test_affine_norm_has_jaxs_own_gradients(x64, rng, close, dtype, shortcut, slope):
    """Also where a scale is 0 or negative."""
    g, x, *shortcuts = cast(draws(rng, 3 if shortcut else 2), dtype)
    scale, bias = (jnp.asarray(vector, dtype) for vector in ([0.0, -0.5, 2.0], [0.3, 0.0, -1.0]))

    def plain(x, scale, bias, shortcut=0.0):
        return jax.nn.leaky_relu(formula(x) * scale.reshape(1, 1, 1, 1, -1) + bias.reshape(1, 1, 1, 1, -1) + shortcut, slope)

    inputs = (x, scale, bias, *shortcuts)
    close(run(lambda *a: affine_norm(slope, *a), g, *inputs), run(plain, g, *inputs), dtype)


def test_affine_norm_in_bfloat16_is_near_single_precision(rng, close):
    g, x, shortcut = cast(draws(rng, 3), "bfloat16")
    vectors = [jnp.asarray(vector, jnp.float32) for vector in ([0.5, -0.5, 2.0], [0.3, 0.0, -1.0])]
    f = lambda *a: affine_norm(0.01, *a)  # noqa: E731
    half, full = run(f, g, x, *vectors, shortcut), run(f, *cast((g, x, *vectors, shortcut), "float32"))
    assert [str(a.dtype) for a in half[1]] == ["bfloat16", "float32", "float32", "bfloat16"] and half[0].dtype == jnp.bfloat16
    close(half, full, "bfloat16")


def test_activated_norm_by_hand():
    """Values 1 and 3 are -1 and 1 normalised; the shortcut is added before the activation."""
    x = jnp.asarray([1.0, 3.0]).reshape(1, 2, 1, 1, 1)
    shortcut = jnp.asarray([-2.0, 4.0]).reshape(x.shape)
    np.testing.assert_allclose(instance_norm(x).ravel(), [-1, 1], rtol=1e-4)
    np.testing.assert_allclose(activated_norm(x).ravel(), [-0.01, 1], rtol=1e-4)
    np.testing.assert_allclose(activated_norm(x, shortcut).ravel(), [-0.03, 5], rtol=1e-4)


def test_channels_and_samples_are_apart(rng, close):
    """Each channel of each sample is normalised as if it were alone; scale and mean do not matter."""
    (x,) = cast(draws(rng, 1), "float32")
    close(activated_norm(x)[1:, ..., 2:], activated_norm(x[1:, ..., 2:]))
    close(activated_norm(x * 50 - 7), activated_norm(x), times=3)


@SHORTCUT
def test_bfloat16_is_near_single_precision(rng, close, shortcut):
    g, *inputs = cast(draws(rng, 3 if shortcut else 2), "bfloat16")
    half, full = (run(activated_norm, *cast((g, *inputs), dtype)) for dtype in ("bfloat16", "float32"))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}
    close(half, full, "bfloat16")
    close(run(instance_norm, g, inputs[0]), run(instance_norm, *cast((g, inputs[0]), "float32")), "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_means_of_many_voxels_are_taken_in_single_precision(rng, close, dtype):
    """In bfloat16 a sum of 32768 values near 100 would have stopped at a fraction of it."""
    x = jnp.asarray(rng.normal(100, 1, size=(1, 32, 32, 32, 1)), dtype)
    exact = np.asarray(x, np.float64)
    close(jax.jit(instance_norm)(x), (exact - exact.mean()) / exact.std(), dtype, times=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 2, 4, 8, 3), (1, 1, 1, 1, 2)], ids=["many voxels", "one voxel"])
def test_what_is_constant_stays_finite(rng, shape, dtype):
    """Background, or the single voxel of a coarse grid: variance 0. (64 voxels, whose mean is exact.)"""
    g, shortcut = cast(draws(rng, 2, shape), dtype)
    for constant in (0, 3):
        out, grads = run(activated_norm, g, jnp.full(shape, constant, dtype), shortcut)
        np.testing.assert_array_equal(out, jax.nn.leaky_relu(shortcut.astype(jnp.float32)).astype(dtype))
        assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in grads)
        assert not instance_norm(jnp.full(shape, constant, dtype)).any()


def kept(f, *inputs):
    """What the backward pass of f keeps, equal arrays counted once, by their shapes."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(jax.vjp(f, *inputs)[1])]
    return [leaf.shape for leaf in {(leaf.shape, leaf.tobytes()): leaf for leaf in leaves}.values()]


def test_of_a_convolution_with_norm_and_activation_one_map_is_kept(rng):
    """Its result, which the next convolution reads anyway. The plain formula keeps more."""
    (x,) = cast(draws(rng, 1), "float32")
    kernels = [jnp.asarray(rng.normal(size=(3, 3, 3, i, 4)), jnp.float32) for i in (3, 4)]
    maps = (*SHAPE[:4], 4)

    def twice(norm):
        return lambda x, a, b: norm(conv3(norm(conv3(x, a)), b))

    assert kept(lambda x, kernel: activated_norm(conv3(x, kernel)), x, kernels[0]).count(maps) == 1
    assert kept(twice(activated_norm), x, *kernels).count(maps) == 2
    assert kept(twice(activated_formula), x, *kernels).count(maps) > 4


def test_of_a_convolution_with_a_learned_norm_two_maps_are_kept(rng):
    """Its result, and the normalised values, which are not read off it: a scale may be 0."""
    (x,) = cast(draws(rng, 1), "float32")
    kernel, vector = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 3, 3, 3, 4), 4))
    assert kept(lambda x, k, s, b: affine_norm(0.01, conv3(x, k), s, b), x, kernel, vector, vector).count((*SHAPE[:4], 4)) == 2


def test_of_a_residual_block_one_map_for_each_convolution_is_kept(rng):
    (x,) = cast(draws(rng, 1), "float32")
    for features, maps in ((4, 3), (3, 3)):  # three convolutions; or two, and x itself as the shortcut
        block = ResBlock(features)
        params = jax.jit(block.init)(jax.random.key(0), x)
        assert kept(block.apply, params, x).count((*SHAPE[:4], features)) == maps


def check_block(theirs, tree, ours, dtype, rng, close, inputs):
    """Values and every gradient of MONAI's block, its parameters random, are ours."""
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = theirs.double()
    g = rng.normal(size=(*inputs[-1].shape[:4], ours.features))
    out, grads = torchs(theirs, g, *inputs)
    params = tree(theirs, value)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), *map(jnp.asarray, inputs))["params"]
    assert jax.tree.map(lambda s: s.shape, shapes) == jax.tree.map(lambda a: a.shape, params)
    result = run(lambda params, *inputs: ours.apply({"params": params}, *inputs), *cast((g, params, *inputs), dtype))
    close(result, (out, [tree(theirs, slope), *grads]), dtype)


@pytest.mark.parity
@BOTH
@pytest.mark.parametrize("features", [5, 3], ids=["other channels", "same channels"])
def test_residual_block_is_monais(x64, rng, close, dtype, features):
    theirs = UnetResBlock(3, 3, features, kernel_size=3, stride=1, norm_name="instance")
    check_block(theirs, residual, ResBlock(features, jnp.dtype(dtype)), dtype, rng, close, draws(rng, 1))


@pytest.mark.parity
@BOTH
def test_up_block_is_monais(x64, rng, close, dtype):
    """What was raised comes before the map from the other side."""
    theirs = UnetrUpBlock(3, 6, 4, kernel_size=3, upsample_kernel_size=2, norm_name="instance", res_block=True)
    inputs = [rng.normal(size=(2, 2, 1, 3, 6)), rng.normal(size=(2, 4, 2, 6, 4))]
    check_block(theirs, joining, UpBlock(4, jnp.dtype(dtype)), dtype, rng, close, inputs)


def test_blocks_compute_in_bfloat16_with_parameters_in_float32(rng, close):
    x, skip = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 2, 3, 2, 6), (2, 4, 6, 4, 4)))
    half, full = UpBlock(4, jnp.bfloat16), UpBlock(4)
    params = jax.jit(half.init)(jax.random.key(0), x, skip)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = jax.jit(half.apply)(params, x, skip)
    assert out.dtype == jnp.bfloat16
    close(out, jax.jit(full.apply)(params, x, skip), "bfloat16", times=3)
