"""The residual U-Net: nnU-Net's numbers forward and backward, its sizes, how it begins, and what it refuses."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer
from torch_trees import first, last, resenc_unet, slope, value

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.pytree import count, paths
from brainseg_jax.models.segmenter import Segmenter
from brainseg_jax.models.unet import ResEnc, ResidualBlock, UNet, downsample

torch = peer("torch")
ResidualEncoderUNet = peer("dynamic_network_architectures.architectures.unet:ResidualEncoderUNet")
against = [
    pytest.mark.parity,
    pytest.mark.skipif(not find_spec("dynamic_network_architectures"), reason="dynamic-network-architectures is not installed"),
]

# Every kind of block: strides with and without a change of channels, a second block, two convolutions in a stage of the decoder.
FEATURES, BLOCKS, CONVS = (4, 6, 6), (1, 2, 1), (1, 2)
SIZE = (8, 12, 16)


def theirs_of(features, blocks, convs, channels, classes):
    """nnU-Net's network as its plans build it; every parameter random, one scale 0 and one negative, in double precision."""
    torch.manual_seed(0)
    stages = len(features)
    net = ResidualEncoderUNet(
        channels, stages, features, torch.nn.Conv3d, 3, [1] + [2] * (stages - 1), blocks, classes, convs,
        conv_bias=True, norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False,
    )  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    with torch.no_grad():
        net.encoder.stages[1].blocks[0].conv2.norm.weight[0] = 0
        net.encoder.stem.convs[0].norm.weight[:2] = torch.tensor([0.0, -1.0])
    return net.double()


def ours_of(features=FEATURES, blocks=BLOCKS, convs=CONVS, classes=3, dtype=jnp.float32, remat=False):
    return Segmenter(ResEnc(features, blocks, remat, dtype), UNet(convs, remat, dtype), classes, dtype)


@pytest.fixture(scope="module")
def pair():
    """(their network, an image, a cotangent, their logits, their gradients in our tree and towards the image)."""
    rng = np.random.default_rng(0)
    image, cotangent = rng.normal(size=(2, *SIZE, 2)), rng.normal(size=(2, *SIZE, 3))
    net = theirs_of(FEATURES, BLOCKS, CONVS, 2, 3)
    given = first(image)
    out = net(given)
    (out.movedim(1, -1) * torch.tensor(cotangent)).sum().backward()
    return net, image, cotangent, last(out), (resenc_unet(net, slope), last(given.grad))


class TestAgainstNnUNet:
    pytestmark = against

    @pytest.mark.optimised
    @pytest.mark.parametrize("remat", [False, True], ids=["", "recomputed"])
    def test_is_theirs_forward_and_backward(self, x64, close, pair, remat):
        net, image, cotangent, expected, slopes = pair
        ours = ours_of(dtype=jnp.float64, remat=remat)

        @jax.jit
        def run(params, image, cotangent):
            out, pull = jax.vjp(lambda p, i: ours.apply({"params": p}, i), params, image)
            return out, pull(cotangent)

        out, grads = run(*jax.tree.map(jnp.asarray, (resenc_unet(net, value), image, cotangent)))
        close(out, expected, "float64")
        close(grads, slopes, "float64")

    def test_is_theirs_in_single_precision(self, close, pair):
        net, image, _, expected, _ = pair
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), resenc_unet(net, value))
        close(jax.jit(ours_of().apply)({"params": params}, jnp.asarray(image, jnp.float32)), expected, times=3)

    def test_what_has_no_place_here_does_nothing_there(self, pair):
        """The biases before norms: their gradients are rounding."""
        net, *_ = pair
        biases = [p.grad.abs().max() for name, p in net.named_parameters() if ".conv.bias" in name and "seg_layers" not in name]
        assert len(biases) == 12 and max(biases) < 1e-10

    def test_leaves_are_theirs(self, pair):
        shapes = jax.eval_shape(ours_of().init, jax.random.key(0), jnp.zeros((1, *SIZE, 2)))["params"]
        theirs = resenc_unet(pair[0], value)
        assert {k: v.shape for k, v in paths(shapes).items()} == {k: v.shape for k, v in paths(theirs).items()}


@pytest.fixture
def small(rng):
    """Random parameters and an image, in single precision."""
    image = jnp.asarray(rng.normal(size=(1, *SIZE, 1)), jnp.float32)
    shapes = jax.eval_shape(ours_of().init, jax.random.key(0), image)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape, scale=s.size**-0.25), s.dtype), shapes)
    return params, image


def test_recomputing_blocks_changes_nothing(small, close):
    params, image = small
    run = lambda net: jax.jit(jax.value_and_grad(lambda p: jnp.sum(net.apply(p, image) ** 2)))(params)  # noqa: E731
    close(run(ours_of(remat=True)), run(ours_of()), times=3)
    assert "remat" in str(jax.make_jaxpr(lambda p: ours_of(remat=True).apply(p, image))(params))


def test_computes_in_bfloat16_with_parameters_in_float32(small, close):
    params, image = small
    encoder = lambda dtype: ResEnc(FEATURES, BLOCKS, dtype=dtype)  # noqa: E731
    own = {"params": params["params"]["encoder"]}
    half, full = (jax.jit(encoder(dtype).apply)(own, image) for dtype in (jnp.bfloat16, jnp.float32))
    assert {m.dtype for m in half} == {jnp.dtype("bfloat16")}
    close([m.astype(jnp.float32) for m in half], list(full), "bfloat16", times=3)
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(encoder(jnp.bfloat16).init, jax.random.key(0), image))} == {
        jnp.dtype("f4")
    }
    logits = jax.eval_shape(ours_of(dtype=jnp.bfloat16).apply, params, image)
    assert logits.shape == (1, *SIZE, 3) and logits.dtype == jnp.float32


def test_maps_go_from_fine_to_coarse():
    maps = jax.eval_shape(lambda image: ResEnc().init_with_output(jax.random.key(0), image)[0], jnp.zeros((1, 64, 96, 64, 1)))
    assert [m.shape for m in maps] == [
        (1, 64 >> s, 96 >> s, 64 >> s, features) for s, features in enumerate((32, 64, 128, 256, 320, 320))
    ]  # fmt: skip


def test_sizes_at_full_size():
    """nnU-Net's network has 102,349,770: 13,056 of biases before norms, and 1,544 of four heads for deep supervision."""
    params = jax.eval_shape(Segmenter(ResEnc(), UNet(), 2).init, jax.random.key(0), jnp.zeros((1, 64, 64, 64, 1)))["params"]
    assert count(params) == 102_349_770 - 13_056 - 1_544


@pytest.mark.parametrize(("features", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_a_block_begins_as_its_shortcut(rng, close, features, stride):
    """Its last norm's scale is 0: what comes out is the leaky ReLU of what came in, on its grid, through a norm where channels change."""
    x = jnp.asarray(rng.normal(size=(2, 4, 6, 4, 3)), jnp.float32)
    block = ResidualBlock(features, stride)
    params = jax.jit(block.init)(jax.random.key(0), x)
    shortcut = downsample(x) if stride == 2 else x
    if features != 3:
        shortcut = shortcut @ params["params"]["skip"]["conv"]["kernel"]
        centred = shortcut - shortcut.mean((1, 2, 3), keepdims=True)
        shortcut = centred / jnp.sqrt((centred**2).mean((1, 2, 3), keepdims=True) + 1e-5)
    close(jax.jit(block.apply)(params, x), jax.nn.leaky_relu(shortcut, 0.01))


def test_halved_is_the_mean_of_eight_voxels():
    x = jnp.arange(2 * 2 * 4.0).reshape(1, 2, 2, 4, 1)
    np.testing.assert_array_equal(downsample(x).ravel(), [(0 + 1 + 4 + 5 + 8 + 9 + 12 + 13) / 8, (2 + 3 + 6 + 7 + 10 + 11 + 14 + 15) / 8])


def test_an_image_that_does_not_halve_is_refused():
    with pytest.raises(InputError, match=r"an image of 8 x 10 x 16 voxels: this U-Net takes multiples of 4 .* pad it to 8 x 12 x 16"):
        jax.eval_shape(ours_of().init, jax.random.key(0), jnp.zeros((1, 8, 10, 16, 1)))
