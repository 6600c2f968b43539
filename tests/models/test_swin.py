"""The Swin transformer: MONAI's numbers in all its variants; both forms of window attention; constants where they belong."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer
from torch_trees import last, slope, swin, swin_stage, value

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.pytree import count, paths
from brainseg_jax.models.swin import OCTANTS, Block, Merge, Stage, Swin, _together, attend_windows
from brainseg_jax.models.windows import masks, merge_windows, partition, regions, relative, window_grid

torch = peer("torch")
MonaiSwinUNETR = peer("monai.networks.nets:SwinUNETR")
MERGING_MODE = peer("monai.networks.nets.swin_unetr:MERGING_MODE")
BasicLayer = peer("monai.networks.nets.swin_unetr:BasicLayer")
MonaiAttention = peer("monai.networks.nets.swin_unetr:WindowAttention")

# Windows: 3 x 3 x 5 and 2 x 2 x 3, all padded; then 4 x 4 x 7, reduced and shifted along z; then 2 x 2 x 4.
SIZE = (32, 32, 64)


class LegacyMerging(torch.nn.Module):
    """What `merging` was in MONAI until 1.4: two octants twice, two never."""

    def __init__(self, dim, norm_layer, spatial_dims):
        super().__init__()
        self.norm = norm_layer(8 * dim)
        self.reduction = torch.nn.Linear(8 * dim, 2 * dim, bias=False)

    def forward(self, x):
        corners = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
        return self.reduction(self.norm(torch.cat([x[:, i::2, j::2, k::2] for i, j, k in corners], -1)))


def monai(merging, v2, channels, width=12, qkv_bias=True):
    """MONAI's encoder, every parameter random so that biases and tables matter, in double precision."""
    torch.manual_seed(0)
    net = MonaiSwinUNETR(
        in_channels=channels, out_channels=2, feature_size=width, use_v2=v2, qkv_bias=qkv_bias,
        downsample=LegacyMerging if merging == "legacy" else merging,
    ).swinViT  # fmt: skip
    return draw(net)


def draw(net):
    """Kernels random to keep their input's scale, norms around 1, biases and tables large; in double precision."""
    for name, parameter in net.named_parameters():
        table, norm = "table" in name, "norm" in name and "weight" in name
        wide = parameter.ndim > 1 and not table
        torch.nn.init.normal_(parameter, float(norm), parameter[0].numel() ** -0.5 if wide else 0.3)
    return net.double()


def both(theirs, ours, image, rng, dtype, tree):
    """(maps, gradients to parameters, gradient to the image) of the two networks, under the same random cotangents."""
    theirs_in = torch.tensor(np.moveaxis(image, -1, 1)).requires_grad_()
    maps = theirs(theirs_in)
    weights = [rng.normal(size=last(m).shape) for m in maps]
    sum((m.movedim(1, -1) * torch.tensor(w)).sum() for m, w in zip(maps, weights, strict=True)).backward()
    expected = [last(m) for m in maps], tree(slope), last(theirs_in.grad)

    @jax.jit
    def run(params, image, weights):
        out, pull = jax.vjp(lambda p, i: ours(p, i), params, image)
        return (list(out), *pull(tuple(weights)))

    return run(*jax.tree.map(lambda a: jnp.asarray(a, dtype), (tree(value), image, weights))), expected


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(
    ("merging", "v2", "channels", "dtype"),
    [
        ("legacy", False, 1, "float64"),
        ("merging", False, 2, "float64"),
        ("mergingv2", False, 1, "float64"),
        ("merging", True, 1, "float64"),
        ("legacy", False, 2, "float32"),
    ],
)
def test_is_monai_forward_and_backward(x64, rng, close, dtype, merging, v2, channels):
    net = monai(merging, v2, channels)
    ours = Swin(width=12, merging=merging, v2=v2, dtype=jnp.dtype(dtype))
    image = rng.normal(size=(2, *SIZE, channels))
    tree = lambda of: swin(net, of)  # noqa: E731
    close(*both(lambda x: net(x, True), lambda p, x: ours.apply({"params": p}, x), image, rng, dtype, tree), dtype)


@pytest.mark.parity
@pytest.mark.parametrize(("merging", "dtype"), [("legacy", "float64"), ("merging", "float32")])
def test_stage_is_monais_forward_and_backward(x64, rng, close, dtype, merging):
    """Windows padded and shifted along x, whole and reduced along y and z; two samples."""
    torch.manual_seed(0)
    down = LegacyMerging if merging == "legacy" else MERGING_MODE[merging]
    net = BasicLayer(12, 2, 3, (7, 7, 7), [0.0, 0.0], qkv_bias=True, norm_layer=torch.nn.LayerNorm, downsample=down)
    net = draw(net)
    ours = Stage(3, 7, OCTANTS[merging], (0.0, 0.0), dtype=jnp.dtype(dtype))
    x = rng.normal(size=(2, 10, 4, 2, 12))
    tree = lambda of: swin_stage(net, of)  # noqa: E731
    close(*both(lambda x: [net(x)], lambda p, x: (ours.apply({"params": p}, x),), x, rng, dtype, tree), dtype)


@pytest.mark.parametrize("merging", ["legacy", "merging", "mergingv2"])
def test_merging_by_hand(merging):
    """Eight voxels of one channel, 4x + 2y + z their values: joined in the variant's order."""
    x = jnp.arange(8.0).reshape(1, 2, 2, 2, 1)
    order = {"legacy": [0, 4, 2, 1, 5, 2, 1, 7], "merging": [0, 4, 2, 1, 6, 5, 3, 7], "mergingv2": range(8)}[merging]
    expected = (np.array(order) - np.mean(order)) / np.sqrt(np.var(order) + 1e-5)
    for i in range(0, 8, 2):
        pick = {"norm": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}, "reduction": {"kernel": jnp.eye(8)[:, i : i + 2]}}
        np.testing.assert_allclose(Merge(OCTANTS[merging]).apply({"params": pick}, x).reshape(-1), expected[i : i + 2], rtol=1e-5)


def test_windows_by_hand():
    """A line of five voxels, windows of three, shifted by one: a zero is added at the end, then the first voxel goes there."""
    x = jnp.arange(1.0, 6).reshape(1, 5, 1, 1, 1)
    c = window_grid((5, 1, 1), 3, 1)
    assert c == ((3, 1, 1), (1, 0, 0), (6, 1, 1))
    np.testing.assert_array_equal(partition(x, c)[..., 0], [[2, 3, 4], [5, 0, 1]])
    np.testing.assert_array_equal(regions(c), [[0, 0, 0], [9, 9, 18]])
    assert window_grid((7, 8, 6), 7, 3) == ((7, 7, 6), (0, 3, 0), (7, 14, 6))


@pytest.mark.parametrize("shift", [0, 1])
def test_join_undoes_partition(rng, shift):
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 2, 3)), jnp.float32)
    c = window_grid((5, 6, 2), 3, shift)
    assert partition(x, c).shape == (2 * 2 * 2, 18, 3)
    np.testing.assert_array_equal(merge_windows(partition(x, c), c, (5, 6, 2)), x)


def apart(c):
    """Whether two tokens of a window are apart [w n n], told from where each came from: one was rolled over the edge, the other not."""
    places = np.moveaxis(np.indices(c.padded), 0, -1)[None]
    came_from = np.asarray(partition(jnp.asarray(places, jnp.float32), c))
    rolled = came_from < np.array(c.shift)
    return (rolled[:, :, None] != rolled[:, None, :]).any(-1)


@pytest.mark.parametrize("grid", [(5, 6, 4), (7, 3, 2), (9, 9, 9)])
def test_masks_part_what_the_roll_brought_together(grid):
    c = window_grid(grid, 3, 1)
    mask, kinds = masks(c)
    np.testing.assert_array_equal(mask[kinds], apart(c))
    labels = regions(c)
    np.testing.assert_array_equal(labels[:, :, None] != labels[:, None, :], apart(c))
    assert len(mask) == 2 ** sum(n > 3 for n in grid)


@pytest.mark.parity
def test_relative_positions_are_monais_and_by_hand():
    np.testing.assert_array_equal(relative(7), MonaiAttention(12, 3, (7, 7, 7)).relative_position_index)
    index = relative(2)  # 3 x 3 x 3 rows, of which the 13th is no step at all
    assert (np.diag(index) == 13).all()
    assert (index[0, 7], index[7, 0], index[4, 0], index[2, 0], index[1, 0]) == (0, 26, 13 + 9, 13 + 3, 13 + 1)


def formula(q, k, v, bias, c):
    """softmax(q kᵀ / √e + bias - 100 where apart) v."""
    scores = jnp.einsum("wnhe,wmhe->whnm", q, k) / q.shape[-1] ** 0.5 + bias[None]
    away = np.tile(apart(c), (len(q) // len(apart(c)), 1, 1))[:, None]
    return jnp.einsum("whnm,wmhe->wnhe", jax.nn.softmax(scores - 100.0 * away, axis=-1), v)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("form", ["cpu", "gpu"])
def test_window_attention_is_the_formula_forward_and_backward(x64, rng, close, dtype, shift, form):
    """Two samples of four windows of 18 tokens. In double precision biases are large: some outweigh the -100 between regions."""
    c = window_grid((5, 6, 2), 3, shift)
    q, k, v, g = (jnp.asarray(rng.normal(size=(8, 18, 2, 4)), dtype) for _ in range(4))
    exact = "float64" if dtype == "float64" else "float32"
    bias = jnp.asarray(rng.normal(size=(2, 18, 18)) * (40 if dtype == "float64" else 1), exact)
    f = attend_windows if form == "cpu" else lambda q, k, v, bias, c: _together(c, q, k, v, bias)
    out, pull = jax.vjp(lambda *a: f(*a, c), q, k, v, bias)
    theirs, their_pull = jax.vjp(lambda *a: formula(*a, c), *(a.astype("float64") for a in (q, k, v, bias)))
    grads = pull(g)
    assert out.dtype == jnp.dtype(dtype) and [a.dtype.name for a in grads] == [dtype] * 3 + [exact]
    close(out, theirs, dtype)
    close(grads, their_pull(g.astype("float64")), dtype)


def test_large_scores_stay_finite(rng):
    q, v = (jnp.asarray(rng.normal(size=(4, 18, 2, 4)), jnp.float32) for _ in range(2))
    out, pull = jax.vjp(lambda q: attend_windows(q * 1e3, q * 1e3, v, jnp.zeros((2, 18, 18)), window_grid((5, 6, 2), 3, 1)), q)
    assert np.isfinite(out).all() and np.isfinite(pull(out)[0]).all()


def test_no_scores_are_kept_for_the_backward_pass(rng):
    q = jnp.asarray(rng.normal(size=(4, 18, 2, 4)), jnp.float32)
    bias = jnp.zeros((2, 18, 18))
    _, pull = jax.vjp(lambda q, bias: attend_windows(q, q, q, bias, window_grid((5, 6, 2), 3, 1)), q, bias)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.shape != bias.shape]
    assert kept and max(leaf.size for leaf in kept) <= q.size


@pytest.fixture(scope="module")
def lowered():
    """The program of a block and its gradient as text: `lowered(platform, shift)`; grid 9³ in 27 windows of 27 tokens."""

    def lower(platform, shift):
        block = Block(3, 3, shift)
        x = jnp.zeros((1, 9, 9, 9, 12))
        params = jax.eval_shape(block.init, jax.random.key(0), x)
        gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(block.apply(p, x))))
        return gradient.trace(params, x).lower(lowering_platforms=(platform,)).as_text()

    return lower


def test_platform_compiled_for_picks_the_form(lowered):
    assert lowered("cpu", 1).count("stablehlo.while") == 2
    assert "stablehlo.while" not in lowered("cuda", 1)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_masks_are_small_constants_and_only_where_there_is_a_shift(lowered, platform):
    """Regions enter the program as bytes: a label a token, or the eight masks that differ; never a mask for each of 27 windows."""
    shifted, plain = lowered(platform, 1), lowered(platform, 0)
    assert "stablehlo.iota" not in shifted
    constants = [line.rpartition("tensor<")[2].partition(">")[0] for line in shifted.splitlines() if "stablehlo.constant" in line]
    sizes = {shape for shape in constants if shape.endswith("xi8")}
    assert sizes <= {"27x27xi8", "8x27x27xi8"} and sizes
    assert "xi8>" not in plain and "-1.000000e+02" not in plain and "-1.000000e+02" in shifted


# One stage of two blocks on a grid of 10 x 6 x 4, windows of 3: padded along x and z, shifted on every axis.
TINY = {"width": 12, "depths": (2,), "heads": (3,), "window": 3}


@pytest.fixture
def tiny(rng):
    """A volume, and parameters for TINY with every one random."""
    image = jnp.asarray(rng.normal(size=(1, 20, 12, 8, 1)), jnp.float32)
    shapes = jax.eval_shape(Swin(**TINY).init, jax.random.key(0), image)
    return image, jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape, scale=0.3), s.dtype), shapes)


def test_recomputing_blocks_changes_nothing(tiny, close):
    image, params = tiny
    run = lambda net: jax.jit(jax.value_and_grad(lambda p: jnp.sum(net.apply(p, image)[1] ** 3)))(params)  # noqa: E731
    close(run(Swin(**TINY, remat=True)), run(Swin(**TINY)))
    assert "remat" in str(jax.make_jaxpr(lambda p: Swin(**TINY, remat=True).apply(p, image))(params))


def test_computes_in_bfloat16_with_parameters_in_float32(tiny, close):
    image, params = tiny
    half = Swin(**TINY, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    maps, full = jax.jit(half.apply)(params, image), jax.jit(Swin(**TINY).apply)(params, image)
    assert {m.dtype for m in maps} == {jnp.dtype("bfloat16")}
    close(maps, full, "bfloat16", times=3)


def test_maps_are_normalised_over_their_channels(tiny):
    image, params = tiny
    for m in jax.jit(Swin(**TINY).apply)(params, image):
        np.testing.assert_allclose(np.mean(m, -1), 0, atol=1e-5)
        np.testing.assert_allclose(np.var(m, -1), 1, atol=1e-3)


def test_drop_path_leaves_whole_samples_out_and_scales_the_others(rng, close):
    """With a dead MLP a block is x + attention, or x: a quarter of 200 like samples is left out, and the mean stays."""
    x = jnp.asarray(np.repeat(rng.normal(size=(1, 2, 2, 2, 12)), 200, axis=0), jnp.float32)
    block, sometimes = Block(3, 3, 1), Block(3, 3, 1, drop_path=0.25)
    params = jax.tree.map(lambda a: a, jax.jit(block.init)(jax.random.key(0), x))
    params["params"]["mlp"]["linear2"] = jax.tree.map(jnp.zeros_like, params["params"]["mlp"]["linear2"])
    always = jax.jit(block.apply)(params, x) - x
    out = jax.jit(sometimes.apply)(params, x, rngs={"drop_path": jax.random.key(1)}) - x
    kept = np.abs(np.asarray(out)).max((1, 2, 3, 4)) > 0
    close(out[kept], always[kept] / 0.75, times=2)
    assert 130 <= kept.sum() <= 170


def test_drop_path_rises_over_the_blocks_and_only_in_training(tiny, close):
    image, params = tiny
    net = Swin(**TINY, drop_path=0.5)
    rates = []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, Block):
            rates.append(context.module.drop_path)
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        evaluated = net.apply(params, image)
        jax.eval_shape(lambda: net.apply(params, image, True, rngs={"drop_path": jax.random.key(0)}))
    assert rates == [0, 0, 0, 0.5]
    close(evaluated, Swin(**TINY).apply(params, image))


def test_sizes_that_are_no_multiple_of_32_are_an_input_error():
    with pytest.raises(InputError, match=r"an image of 40 x 96 x 65 voxels.*multiples of 32.*64 x 96 x 96"):
        jax.eval_shape(Swin().init, jax.random.key(0), jnp.zeros((1, 40, 96, 65, 1)))


@pytest.mark.parity
def test_sizes_at_full_size():
    def shapes(**fields):
        return jax.eval_shape(lambda key: Swin(**fields).init_with_output(key, jnp.zeros((1, 96, 96, 96, 1))), jax.random.key(0))

    maps, params = shapes(width=48)
    assert count(params) == 8_062_002
    assert [m.shape for m in maps] == [(1, n, n, n, d) for n, d in ((48, 48), (24, 96), (12, 192), (6, 384), (3, 768))]
    assert set(paths(params["params"])) == set(paths(swin(monai("merging", False, 1), value)))
