"""UNETR: MONAI's numbers in MONAI's dialect, forward and backward; both dialects' sizes; a ViT that leaves branches out while it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer
from torch_trees import doubling, first, head, joining, last, residual, slope, value, vit

from brainseg_jax.config.keys import base
from brainseg_jax.core.pytree import count, paths
from brainseg_jax.models import encoders
from brainseg_jax.models.layers import Block
from brainseg_jax.models.segmenter import Segmenter
from brainseg_jax.models.unetr import UNETR
from brainseg_jax.models.vit import ViT

torch = peer("torch")
MonaiUNETR = peer("monai.networks.nets:UNETR")

SIZE = (16, 32, 48)
SMALL = {"grid": (1, 2, 3), "width": 48, "depth": 12, "heads": 4, "hidden": 96, "features": (3, 6, 9)}
MONAI = {"positions": "table", "class_token": False, "eps": 1e-5}


def monai(channels, projection, qkv_bias):
    """MONAI's network, every parameter random and of a size that keeps values near 1, in double precision."""
    torch.manual_seed(0)
    net = MonaiUNETR(
        in_channels=channels, out_channels=3, img_size=SIZE, feature_size=4, hidden_size=48, mlp_dim=96, num_heads=4,
        proj_type=projection, qkv_bias=qkv_bias,
    )  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    return net.double()


def ours(qkv_bias, dtype="float64", remat=False, **changes):
    dtype = jnp.dtype(dtype)
    encoder = ViT(**SMALL | MONAI | {"qkv_bias": qkv_bias} | changes, dtype=dtype, remat=remat)
    return Segmenter(encoder, UNETR(width=4, dtype=dtype, remat=remat), 3, dtype)


def as_flax(net, of):
    """`of(parameter)` for each of the parameters of MONAI's UNETR that it uses, in our tree."""

    def raised(block):
        tree = {"transp_conv_init": doubling(block.transp_conv_init.conv, of)}
        for i, (up, res) in enumerate(block.blocks):
            tree |= {f"blocks_{i}_transp_conv": doubling(up.conv, of), f"blocks_{i}_conv_block": residual(res, of)}
        return tree

    decoder = {"encoder1": residual(net.encoder1.layer, of)}
    decoder |= {f"encoder{i}": raised(getattr(net, f"encoder{i}")) for i in (2, 3, 4)}
    decoder |= {f"decoder{i}": joining(getattr(net, f"decoder{i}"), of) for i in (2, 3, 4, 5)}
    return {"encoder": vit(net.vit, of), "decoder": decoder, "head": head(net.out.conv.conv, of)}


def both(net):
    """The network's result, and its gradients for a cotangent towards parameters and image, compiled."""

    @jax.jit
    def run(params, image, g):
        out, pull = jax.vjp(lambda params, image: net.apply({"params": params}, image), params, image)
        return out, pull(g)

    return run


@pytest.mark.optimised
@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(("channels", "projection", "qkv_bias"), [(2, "conv", False), (1, "perceptron", True)])
def test_is_monai_forward_and_backward(x64, rng, close, channels, projection, qkv_bias):
    """In double precision: in single, a voxel that rounds to the other side of a leaky ReLU has another slope."""
    net = monai(channels, projection, qkv_bias)
    image, g = rng.normal(size=(1, *SIZE, channels)), rng.normal(size=(1, *SIZE, 3))
    theirs_in = first(image)
    theirs = net(theirs_in)
    theirs.backward(torch.tensor(np.moveaxis(g, -1, 1)))
    params = jax.tree.map(jnp.asarray, as_flax(net, value))
    out, grads = both(ours(qkv_bias))(params, jnp.asarray(image), jnp.asarray(g))
    assert out.dtype == jnp.float64
    close(out, last(theirs), "float64")
    close(grads, (as_flax(net, slope), last(theirs_in.grad)), "float64")


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("channels", "projection", "qkv_bias"), [(1, "conv", True), (2, "perceptron", False)])
def test_is_monai(x64, rng, close, dtype, channels, projection, qkv_bias):
    net = monai(channels, projection, qkv_bias)
    image = rng.normal(size=(2, *SIZE, channels))
    with torch.no_grad():
        theirs = last(net(first(image)))
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), as_flax(net, value))
    out = jax.jit(ours(qkv_bias, dtype).apply)({"params": params}, jnp.asarray(image, dtype))
    assert out.dtype == jnp.dtype(dtype)
    close(out, theirs, dtype)


@pytest.mark.parity
def test_leaves_are_named_as_the_converter_expects(x64):
    theirs = as_flax(monai(2, "conv", False), value)
    shapes = jax.eval_shape(ours(False).init, jax.random.key(0), jnp.zeros((1, *SIZE, 2)))["params"]
    assert {k: v.shape for k, v in paths(shapes).items()} == {k: v.shape for k, v in paths(theirs).items()}


def full_size(side, classes, **vit):
    """Shapes of the config's UNETR at full size, and of its logits."""
    config = base()
    config.update(data={"crop": (side,) * 3}, classes=classes, vit=vit, dtype="float32")
    image = jnp.zeros((1, side, side, side, 1))
    return jax.eval_shape(encoders.segmenter(config).init_with_output, jax.random.key(0), image)


@pytest.mark.parity
@pytest.mark.parametrize(("side", "classes", "whole"), [(160, 36, 93_386_532), (96, 36, 92_784_420), (96, 2, 92_783_842)])
def test_sizes_in_monais_dialect(side, classes, whole):
    """MONAI 1.6's counts less its 18,432 dead parameters; 92.78 M are those of MONAI until 1.3."""
    logits, variables = full_size(side, classes, positions="table", class_token=False, qkv_bias=False, eps=1e-5)
    assert count(variables) == whole
    assert logits.shape == (1, side, side, side, classes) and logits.dtype == jnp.float32


@pytest.mark.parity
@pytest.mark.parametrize(("classes", "whole"), [(36, 92_732_196), (2, 92_731_618), (5, 92_731_669)])
def test_sizes_in_the_papers_dialect(classes, whole):
    logits, variables = full_size(160, classes, positions="separable", features=(2, 5, 8))
    assert count(variables) == whole and logits.shape == (1, 160, 160, 160, classes)


def test_the_papers_dialect_takes_other_blocks(rng):
    """The maps behind blocks 2, 5 and 8, from 0: without the blocks behind them, and the last one, they are the same."""
    image = jnp.asarray(rng.normal(size=(1, *SIZE, 1)), jnp.float32)
    net = ViT(**SMALL | {"features": (2, 5, 8), "depth": 9})
    params = jax.jit(net.init)(jax.random.key(0), image)
    third, sixth, ninth, end = jax.jit(net.apply)(params, image)
    short = jax.tree.map(lambda leaf: leaf[:6], params["params"]["blocks"])
    third_again, sixth_again, _ = ViT(**SMALL | {"features": (2, 5), "depth": 6}).apply(
        {"params": params["params"] | {"blocks": short}}, image
    )
    np.testing.assert_allclose(third, third_again, atol=1e-5)
    np.testing.assert_allclose(sixth, sixth_again, atol=1e-5)
    assert not np.allclose(ninth, end, atol=1e-2)  # only the last is normalised


@pytest.fixture
def random(rng):
    """Random parameters for a network of one channel, and an image."""
    image = jnp.asarray(rng.normal(size=(1, *SIZE, 1)), jnp.float32)
    shapes = jax.eval_shape(ours(False, "float32").init, jax.random.key(0), image)["params"]
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape, scale=s.size**-0.25), s.dtype), shapes), image


@pytest.mark.slow
def test_recomputing_blocks_changes_nothing(x64, random, rng, close):
    random = jax.tree.map(lambda a: a.astype(jnp.float64), random)
    g = jnp.asarray(rng.normal(size=(1, *SIZE, 3)))
    plain, remat = (ours(False, "float64", remat) for remat in (False, True))
    close(both(remat)(*random, g), both(plain)(*random, g), "float64")
    jaxpr = str(jax.make_jaxpr(lambda params, image: remat.apply({"params": params}, image))(*random))
    assert jaxpr.count("remat") >= 9  # the ViT's scanned block, and the decoder's eight


@pytest.mark.slow
def test_computes_in_bfloat16_with_parameters_and_logits_in_float32(random, close):
    params, image = random
    half = ours(False, "bfloat16")
    shapes = jax.eval_shape(half.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    out = jax.jit(half.apply)({"params": params}, image)
    assert out.dtype == jnp.float32
    close(out, jax.jit(ours(False, "float32").apply)({"params": params}, image), "bfloat16", times=3)


# ---- branches that are left out while the ViT trains


@pytest.fixture(scope="module")
def block():
    """(parameters, one sample [1 n d], run(parameters, x, drop, key)) of a small transformer block."""
    net = Block(heads=2, hidden=8)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 6)), jnp.float32)
    params = jax.jit(net.init)(jax.random.key(0), x)["params"]
    run = jax.jit(lambda params, x, drop, key: net.apply({"params": params}, x, drop, rngs={"drop_path": key})[0])
    return params, x, run


def without_mlp(params):
    """So that a block adds the attention only."""
    return params | {"mlp": jax.tree.map(jnp.zeros_like, params["mlp"])}


def test_a_branch_is_left_out_as_a_whole_and_scaled_where_it_stays(block, close):
    """Of 400 like samples a quarter goes without attention; each draws for itself, and the mean stays."""
    params, x, run = block
    params, many = without_mlp(params), jnp.repeat(x, 400, axis=0)
    branch = run(params, x, None, jax.random.key(0)) - x
    added = np.asarray(run(params, many, jnp.float32(0.25), jax.random.key(1)) - many)
    kept = np.abs(added).max((1, 2)) > 0
    close(added[kept], jnp.repeat(branch / 0.75, kept.sum(), axis=0), times=2)
    assert 260 <= kept.sum() <= 340  # within 4.6 standard deviations of 300
    other = np.asarray(run(params, many, jnp.float32(0.25), jax.random.key(2)) - many)
    assert ((np.abs(other).max((1, 2)) > 0) != kept).any()


def test_attention_and_mlp_are_left_out_apart(block):
    """Four outcomes, and each in its share of the samples."""
    params, x, run = block
    many = jnp.repeat(x, 2000, axis=0)
    out = np.asarray(run(params, many, jnp.float32(0.5), jax.random.key(3)))
    _, shares = np.unique(out.round(4).reshape(2000, -1), axis=0, return_counts=True)
    assert len(shares) == 4 and (np.abs(shares - 500) < 100).all()


def test_the_mean_is_that_of_the_whole_block(block):
    """Unbiased: over many draws, attention and MLP are added in full. The MLP sees the input as the attention is dead."""
    params, x, run = block
    for dead in ("attn", "mlp"):
        alive = params | {dead: jax.tree.map(jnp.zeros_like, params[dead])}
        added = np.asarray(run(alive, jnp.repeat(x, 20_000, axis=0), jnp.float32(0.3), jax.random.key(4)) - x[:1].repeat(20_000, 0))
        np.testing.assert_allclose(added.mean(0), (run(alive, x, None, jax.random.key(0)) - x)[0], rtol=0.03, atol=1e-5)


def test_a_chance_of_zero_leaves_nothing_out(block):
    params, x, run = block
    np.testing.assert_array_equal(run(params, x, jnp.float32(0), jax.random.key(5)), run(params, x, None, jax.random.key(0)))


TINY = {"grid": (1, 2, 1), "patch": 4, "width": 12, "depth": 3, "heads": 2, "hidden": 20}


@pytest.fixture
def tiny(rng):
    """(parameters, an image of 64 samples that are all the same) for a ViT of TINY."""
    image = jnp.repeat(jnp.asarray(rng.normal(size=(1, 4, 8, 4, 1)), jnp.float32), 64, axis=0)
    return jax.jit(ViT(**TINY).init)(jax.random.key(0), image), image


def test_nothing_is_left_out_but_in_training(tiny):
    params, image = tiny
    never, sometimes = ViT(**TINY), ViT(**TINY, drop_path=0.5)
    plain = never.apply(params, image)[0]
    np.testing.assert_array_equal(sometimes.apply(params, image)[0], plain)  # and no stream is asked for
    np.testing.assert_array_equal(
        sometimes.apply(params, image, method="tokens", keep=jnp.zeros((64, 1), int))[:, 1:],
        never.apply(params, image, jnp.zeros((64, 1), int), method="tokens")[:, 1:],
    )
    np.testing.assert_array_equal(never.apply(params, image, True)[0], plain)
    trained = sometimes.apply(params, image, True, rngs={"drop_path": jax.random.key(0)})[0]
    assert 4 < len(np.unique(np.asarray(trained).round(4).reshape(64, -1), axis=0)) <= 16


def test_chances_rise_with_depth(tiny):
    """From 0 at the first block, which every sample passes whole, to all of it at the last."""
    params, image = tiny
    net = ViT(**TINY, drop_path=0.6, features=(0, 1, 2))
    maps = net.apply(params, image, True, rngs={"drop_path": jax.random.key(0)})
    different = [len(np.unique(np.asarray(m).round(4).reshape(64, -1), axis=0)) for m in maps[:3]]
    assert different[0] == 1 and 2 <= different[1] <= 4 < different[2] <= 16
    same = np.abs(np.asarray(maps[2] - maps[1])).max((1, 2, 3, 4)) == 0  # both branches of the last block: 0.36 of the samples
    assert 10 <= same.sum() <= 38


def test_it_trains_under_scan_and_recomputes_the_same_draws(tiny, close):
    params, image = tiny

    def run(remat, key):
        net = ViT(**TINY, drop_path=0.5, remat=remat)
        loss = lambda params: jnp.sum(net.apply(params, image, True, rngs={"drop_path": key})[0] ** 3)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    close(run(True, jax.random.key(1)), run(False, jax.random.key(1)))
    assert run(True, jax.random.key(2))[0] != run(True, jax.random.key(1))[0]
