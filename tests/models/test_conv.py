"""3-D convolutions: the form by planes is PyTorch's and SciPy's convolution, backward too; a GPU is given plain ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer
from scipy import ndimage
from torch_trees import first, last

from brainseg_jax.models import conv, cpu_conv
from brainseg_jax.models.conv import Conv3, UpConv, conv3, conv3_strided

torch = peer("torch")

# [b x y z i] and outputs. Along x planes go in pairs and pairs in slabs: one, a half, odd, as many as slabs, one more and one fewer.
SIZES = (
    ((1, 1, 1, 1, 1), 1),
    ((2, 1, 3, 2, 2), 3),
    ((1, 2, 1, 5, 3), 2),
    ((2, 3, 4, 1, 1), 5),
    ((1, 5, 2, 3, 4), 1),
    ((1, 11, 3, 2, 2), 2),
    ((2, 12, 2, 2, 1), 3),
    ((1, 13, 2, 4, 3), 2),
    ((1, 24, 3, 5, 2), 3),
)


def name(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else None


def draws(rng, shape, outputs):
    """A volume, a kernel, and a cotangent of the result."""
    return rng.normal(size=shape), rng.normal(size=(3, 3, 3, shape[-1], outputs)), rng.normal(size=(*shape[:-1], outputs))


def torchs(x, kernel, g):
    """PyTorch's result, and its gradients towards volume and kernel, in double precision."""
    image, weight = first(x), torch.tensor(kernel.transpose(4, 3, 0, 1, 2)).requires_grad_()
    out = torch.nn.functional.conv3d(image, weight, padding=1)
    out.backward(torch.tensor(np.moveaxis(g, -1, 1)))
    return last(out), (last(image.grad), weight.grad.numpy().transpose(2, 3, 4, 1, 0))


def run(f, g, *inputs):
    """f's result, and its gradients for the cotangent g."""

    def both(inputs, g):
        out, pull = jax.vjp(f, *inputs)
        return out, pull(g)

    return jax.jit(both)(inputs, g)


def cast(arrays, dtype):
    return [jnp.asarray(a, dtype) for a in arrays]


@pytest.mark.parity
@pytest.mark.parametrize(("shape", "outputs"), SIZES, ids=name)
def test_is_pytorchs_forward_and_backward(x64, rng, close, shape, outputs):
    x, kernel, g = draws(rng, shape, outputs)
    close(run(conv3, *cast((g, x, kernel), "float64")), torchs(x, kernel, g), "float64")


@pytest.mark.parity
@pytest.mark.parametrize(("shape", "outputs"), SIZES, ids=name)
@pytest.mark.parametrize("slabs", [1, 2, 6])
def test_slabs_change_nothing(x64, rng, close, shape, outputs, slabs):
    x, kernel, g = draws(rng, shape, outputs)
    close(cpu_conv._by_slabs(*cast((x, kernel), "float64"), slabs), torchs(x, kernel, g)[0], "float64")


@pytest.mark.parity
@pytest.mark.parametrize(("shape", "outputs"), SIZES, ids=name)
@pytest.mark.parametrize("form", [cpu_conv._gathering, cpu_conv._spreading])
def test_planes_and_their_neighbours(x64, rng, close, shape, outputs, form):
    x, kernel, g = draws(rng, shape, outputs)
    close(form(*cast((x, kernel), "float64")), torchs(x, kernel, g)[0], "float64")


@pytest.mark.parity
@pytest.mark.parametrize(("shape", "outputs"), [SIZES[1], SIZES[4], ((2, 13, 7, 5, 6), 4)], ids=name)
def test_is_pytorchs_in_single_precision(rng, close, shape, outputs):
    x, kernel, g = draws(rng, shape, outputs)
    out, grads = run(conv3, *cast((g, x, kernel), "float32"))
    assert {a.dtype for a in (out, *grads)} == {jnp.dtype("float32")}
    close((out, grads), torchs(x, kernel, g))


@pytest.mark.parity
@pytest.mark.slow
def test_is_pytorchs_with_as_many_channels_as_the_networks_have(rng, close):
    x, kernel, g = draws(rng, (1, 10, 12, 14, 256), 128)
    close(run(conv3, *cast((g, x, kernel), "float32")), torchs(x, kernel, g))


def test_is_scipys(x64, rng, close):
    x, kernel, _ = draws(rng, (2, 5, 4, 3, 2), 3)
    expected = np.zeros((2, 5, 4, 3, 3))
    for b, i, o in np.ndindex(2, 2, 3):
        expected[b, ..., o] += ndimage.correlate(x[b, ..., i], kernel[..., i, o], mode="constant")
    close(jax.jit(conv3)(*cast((x, kernel), "float64")), expected, "float64")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_by_planes_is_the_plain_one(x64, rng, close, size):
    """XLA's own, which a GPU runs, on the CPU."""
    x, kernel, g = cast(draws(rng, (2, size, 3, 4, 2), 3), "float64")
    plain = run(conv._plain, g, x, kernel)
    close(run(conv3, g, x, kernel), plain, "float64")
    close(jax.jit(conv._kernel_gradient)(x, g), plain[1][1], "float64")


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_a_kernel_s_gradient_is_the_same_by_any_number_of_rows(x64, rng, close, monkeypatch, rows):
    x, _, g = cast(draws(rng, (2, 3, 6, 4, 2), 3), "float64")
    monkeypatch.setattr(cpu_conv, "COLUMNS", rows * 4 * 9 * 2 * 8)
    close(jax.jit(cpu_conv.kernel_gradient_by_planes)(x, g), conv._kernel_gradient(x, g), "float64")


def test_one_voxel_is_seen_where_the_kernel_says():
    """A cross-correlation: the voxel at (2, 1, 3) comes, through kernel[i, j, k], to (3 - i, 2 - j, 4 - k)."""
    x = jnp.zeros((1, 5, 4, 6, 1)).at[0, 2, 1, 3, 0].set(1.0)
    kernel = jnp.arange(27, dtype=jnp.float32).reshape(3, 3, 3, 1, 1)
    out = np.asarray(conv3(x, kernel))[0, ..., 0]
    np.testing.assert_allclose(out[1:4, 0:3, 2:5], kernel[::-1, ::-1, ::-1, 0, 0], atol=1e-5)
    assert np.abs(out).sum() == pytest.approx(np.arange(27).sum(), rel=1e-6)


def test_gradients_are_the_slopes(x64, rng):
    """Central differences along random directions, through a function that is not linear."""
    x, kernel, _ = cast(draws(rng, (2, 3, 4, 3, 2), 3), "float64")
    loss = jax.jit(lambda x, kernel: jnp.sum(jnp.tanh(conv3(jnp.tanh(conv3(x, kernel)), kernel.swapaxes(3, 4))) * x))
    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel[..., :2, :])
    inputs = [x, kernel[..., :2, :]]
    for i in range(2):
        step = 1e-6 * jnp.asarray(rng.normal(size=inputs[i].shape))
        up, down = (loss(*(a + sign * step if j == i else a for j, a in enumerate(inputs))) for sign in (1, -1))
        assert float(jnp.sum(grads[i] * step)) == pytest.approx(float(up - down) / 2, rel=1e-6)


def test_a_batch_is_its_samples_one_by_one(x64, rng, close):
    x, kernel, g = cast(draws(rng, (3, 3, 3, 2, 2), 3), "float64")
    out, (towards_x, towards_kernel) = run(conv3, g, x, kernel)
    alone = [run(conv3, g[i : i + 1], x[i : i + 1], kernel) for i in range(3)]
    close(out, jnp.concatenate([a[0] for a in alone]), "float64")
    close(towards_x, jnp.concatenate([a[1][0] for a in alone]), "float64")
    close(towards_kernel, sum(a[1][1] for a in alone), "float64")


def test_vmap_is_a_loop(x64, rng, close):
    x, kernel, g = cast(draws(rng, (2, 3, 2, 4, 2), 3), "float64")
    x, kernel, g = (jnp.stack([a, 2 * a + 1, -a]) for a in (x, kernel, g))
    together = jax.jit(jax.vmap(lambda x, kernel, g: run(conv3, g, x, kernel)))(x, kernel, g)
    alone = [run(conv3, g[i], x[i], kernel[i]) for i in range(3)]
    close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone), "float64")


@pytest.mark.parametrize("size", [3, 64])
def test_bfloat16_is_near_single_precision(rng, close, size):
    """Values that do not cancel: a sum kept in bfloat16 over the planes would stop growing."""
    x, kernel, g = draws(rng, (2, size, 6, 5, 2), 3)
    half = cast((g + 1, x + 1, kernel), "bfloat16")
    out, grads = run(conv3, *half)
    assert {a.dtype for a in (out, *grads)} == {jnp.dtype("bfloat16")}
    close((out, grads), run(conv3, *cast(half, "float32")), "bfloat16")


def lowered(f, platform, *inputs):
    return jax.jit(f).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()


def spatial_axes(text):
    """How many spatial axes each convolution of a program has."""
    found = re.findall(r"stablehlo\.convolution\(.*?window = \{stride = \[([^\]]*)\]", text)
    return [len(strides.split(",")) for strides in found]


def loss(x, kernel):
    return jnp.sum(conv3(x, kernel) ** 2)


@pytest.mark.parametrize(
    ("shape", "on_planes"), [((2, 13, 4, 5, 2), 1), ((1, 48, 48, 48, 24), 4), ((1, 96, 96, 96, 48), 24)], ids=["small", "middle", "large"]
)
@pytest.mark.parametrize(
    ("f", "convolutions"), [(conv3, 1), (jax.value_and_grad(loss, argnums=(0, 1)), 3)], ids=["forward", "forward and backward"]
)
def test_platform_compiled_for_picks_the_form(f, convolutions, shape, on_planes):
    inputs = [jax.ShapeDtypeStruct(s, "float32") for s in (shape, (3, 3, 3, shape[-1], shape[-1]))]
    on_gpu, on_cpu = (lowered(f, platform, *inputs) for platform in ("cuda", "cpu"))
    assert spatial_axes(on_gpu) == [3] * convolutions and "stablehlo.while" not in on_gpu
    # On a CPU one convolution of planes, or four in each of so many slabs; the kernel's gradient has none, but a loop over
    # planes and one over their rows.
    assert spatial_axes(on_cpu) == [2] * on_planes * min(convolutions, 2)
    assert on_cpu.count("stablehlo.while") == 2 * (convolutions > 1)


# [b x y z i], outputs, of the strided form: odd and even sizes, one voxel, one channel.
STRIDED = (((1, 1, 1, 1, 1), 1), ((2, 2, 4, 6, 3), 4), ((1, 5, 2, 3, 4), 2), ((2, 8, 6, 4, 1), 5), ((1, 3, 7, 2, 5), 1))


@pytest.mark.parametrize(("shape", "outputs"), STRIDED, ids=name)
def test_strided_by_planes_is_the_plain_one(x64, rng, close, shape, outputs):
    """XLA's own, which a GPU runs, on the CPU: values and both gradients."""
    x, kernel, _ = cast(draws(rng, shape, outputs), "float64")
    plain = lambda x, kernel: jax.lax.conv_general_dilated(  # noqa: E731
        x, kernel, (2, 2, 2), ((1, 1),) * 3, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    g = jnp.asarray(rng.normal(size=(shape[0], *(-(-n // 2) for n in shape[1:4]), outputs)))
    expected = run(plain, g, x, kernel)
    close(run(conv3_strided, g, x, kernel), expected, "float64")
    close(jax.jit(conv._image_gradient, static_argnums=2)(g, kernel, shape), expected[1][0], "float64")
    close(jax.jit(conv._strided_kernel_gradient)(x, g), expected[1][1], "float64")


@pytest.mark.parametrize("size", [3, 64])
def test_strided_in_bfloat16_is_near_single_precision(rng, close, size):
    x, kernel, _ = draws(rng, (2, size, 6, 5, 2), 3)
    g = rng.normal(size=(2, -(-size // 2), 3, 3, 3)) + 1
    half = cast((g, x + 1, kernel), "bfloat16")
    out, grads = run(conv3_strided, *half)
    assert {a.dtype for a in (out, *grads)} == {jnp.dtype("bfloat16")}
    close((out, grads), run(conv3_strided, *cast(half, "float32")), "bfloat16")


def test_a_strided_batch_is_its_samples_one_by_one(x64, rng, close):
    x, kernel, _ = cast(draws(rng, (3, 4, 2, 6, 2), 3), "float64")
    g = jnp.asarray(rng.normal(size=(3, 2, 1, 3, 3)))
    out, (towards_x, towards_kernel) = run(conv3_strided, g, x, kernel)
    alone = [run(conv3_strided, g[i : i + 1], x[i : i + 1], kernel) for i in range(3)]
    close(out, jnp.concatenate([a[0] for a in alone]), "float64")
    close(towards_x, jnp.concatenate([a[1][0] for a in alone]), "float64")
    close(towards_kernel, sum(a[1][1] for a in alone), "float64")


def test_platform_picks_the_strided_form():
    inputs = [jax.ShapeDtypeStruct(s, "float32") for s in ((1, 8, 8, 8, 4), (3, 3, 3, 4, 6))]
    f = jax.value_and_grad(lambda x, kernel: jnp.sum(conv3_strided(x, kernel) ** 2), argnums=(0, 1))
    on_gpu, on_cpu = (lowered(f, platform, *inputs) for platform in ("cuda", "cpu"))
    assert spatial_axes(on_gpu) == [3] * 3 and "stablehlo.while" not in on_gpu
    # Forward, in a loop over planes; even and odd planes of the image's gradient; the kernel's is a loop of products.
    assert spatial_axes(on_cpu) == [2] * 3 and on_cpu.count("stablehlo.while") == 2


def test_the_module_has_one_kernel_and_no_bias(rng, close):
    x, kernel, _ = draws(rng, (1, 3, 4, 5, 2), 3)
    params = jax.eval_shape(Conv3(3).init, jax.random.key(0), jnp.asarray(x, jnp.float32))["params"]
    assert {k: v.shape for k, v in params.items()} == {"kernel": (3, 3, 3, 2, 3)}
    x, kernel = cast((x, kernel), "float32")
    close(Conv3(3).apply({"params": {"kernel": kernel}}, x), conv3(x, kernel))
    half = Conv3(3, jnp.bfloat16)
    assert half.apply({"params": {"kernel": kernel}}, x).dtype == jnp.bfloat16
    assert jax.eval_shape(half.init, jax.random.key(0), x)["params"]["kernel"].dtype == jnp.float32


def test_initial_kernels_keep_the_size_of_what_passes():
    """He's variance, 2 over the inputs that an output sees: 27 voxels of each channel; 1 voxel where outputs do not overlap."""
    x = jnp.zeros((1, 2, 2, 2, 32))
    wide, up = (jax.jit(module(64).init)(jax.random.key(0), x)["params"]["kernel"] for module in (Conv3, UpConv))
    assert np.std(wide) == pytest.approx((2 / (27 * 32)) ** 0.5, rel=0.02)
    assert np.std(up) == pytest.approx((2 / 32) ** 0.5, rel=0.02)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 3, 1, 2, 4)], ids=name)
def test_upconv_is_pytorchs_transposed_convolution(x64, rng, close, shape, dtype):
    x, weight = rng.normal(size=shape), rng.normal(size=(shape[-1], 3, 2, 2, 2))
    g = rng.normal(size=(shape[0], *(2 * n for n in shape[1:4]), 3))
    image, theirs_weight = first(x), torch.tensor(weight).requires_grad_()
    theirs = torch.nn.functional.conv_transpose3d(image, theirs_weight, stride=2)
    theirs.backward(torch.tensor(np.moveaxis(g, -1, 1)))

    def layout(w):
        return w.transpose(0, 2, 3, 4, 1).reshape(len(w), -1)

    up = UpConv(3, jnp.dtype(dtype))
    out, grads = run(lambda x, kernel: up.apply({"params": {"kernel": kernel}}, x), *cast((g, x, layout(weight)), dtype))
    close(out, last(theirs), dtype)
    close(grads, (last(image.grad), layout(theirs_weight.grad.numpy())), dtype)


def test_upconv_by_hand():
    """Voxel (x, y, z) becomes eight; their eight kernels lie in (x, y, z) order, z fastest."""
    up = UpConv(1)
    out = up.apply({"params": {"kernel": jnp.arange(8.0)[None]}}, jnp.full((1, 1, 1, 2, 1), 10.0).at[0, 0, 0, 1].set(100.0))
    np.testing.assert_array_equal(out[0, :, :, :2, 0], [[[0, 10], [20, 30]], [[40, 50], [60, 70]]])
    np.testing.assert_array_equal(out[0, :, :, 2:, 0], [[[0, 100], [200, 300]], [[400, 500], [600, 700]]])
