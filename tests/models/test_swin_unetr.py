"""Swin UNETR's decoder: MONAI's numbers forward and backward, and the sizes of the whole network."""

import jax
import jax.numpy as jnp
import pytest
from peers import peer
from torch_trees import first, joining, last, residual, slope, value

from brainseg_jax.core.pytree import count, paths
from brainseg_jax.models.segmenter import Segmenter
from brainseg_jax.models.swin import Swin
from brainseg_jax.models.swin_unetr import SwinUNETR

torch = peer("torch")
MonaiSwinUNETR = peer("monai.networks.nets:SwinUNETR")

SIZE = (32, 32, 64)
RESIDUAL = ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10")


class Given(torch.nn.Module):
    """In place of MONAI's encoder: maps that are there already."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, x, normalize):
        return self.maps


def monai(channels, maps):
    """MONAI's network on given maps, every parameter random, in double precision."""
    torch.manual_seed(0)
    net = MonaiSwinUNETR(in_channels=channels, out_channels=3, feature_size=12)
    net.swinViT, net.out = Given(maps), torch.nn.Identity()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return net.double()


def as_flax(net, of):
    """`of(parameter)` for each of the parameters of MONAI's decoder, in our tree."""

    tree = {name: residual(getattr(net, name).layer, of) for name in RESIDUAL}
    tree |= {f"decoder{i}": joining(getattr(net, f"decoder{i}"), of) for i in (1, 2, 3, 4, 5)}
    return tree


def draws(rng, channels, size=SIZE):
    """An image and five maps for it, of width 12."""
    grids = [(tuple(n >> i for n in size), 12 << (i - 1)) for i in range(1, 6)]
    return rng.normal(size=(1, *size, channels)), [rng.normal(size=(1, *grid, width)) for grid, width in grids]


@pytest.mark.optimised
@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
def test_is_monai_forward_and_backward(x64, rng, close, channels):
    """In double precision: in single, one voxel in a million rounds to the other side of the leaky ReLU, and has another slope."""
    image, maps = draws(rng, channels)
    cotangent = rng.normal(size=(1, *SIZE, 12))
    theirs_in, their_maps = first(image), [first(m) for m in maps]
    net = monai(channels, their_maps)
    theirs = net(theirs_in)
    (theirs.movedim(1, -1) * torch.tensor(cotangent)).sum().backward()
    expected = as_flax(net, slope), last(theirs_in.grad), [last(m.grad) for m in their_maps]

    ours = SwinUNETR(width=12, dtype=jnp.float64)

    @jax.jit
    def run(params, image, maps, cotangent):
        out, pull = jax.vjp(lambda p, i, m: ours.apply({"params": p}, i, tuple(m)), params, image, maps)
        return out, pull(cotangent)

    params = as_flax(net, value)
    out, grads = run(*jax.tree.map(jnp.asarray, (params, image, maps, cotangent)))
    close(out, last(theirs), "float64")
    close(grads, expected, "float64")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("dtype", "channels", "size"),
    [("float64", 1, SIZE), pytest.param("float32", 2, (32, 64, 64), marks=pytest.mark.slow)],
)
def test_is_monai(x64, rng, close, dtype, channels, size):
    image, maps = draws(rng, channels, size)
    net = monai(channels, [first(m) for m in maps])
    with torch.no_grad():
        theirs = last(net(first(image)))
    ours = SwinUNETR(width=12, dtype=jnp.dtype(dtype))
    params = as_flax(net, value)
    params, image, maps = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, image, tuple(maps)))
    out = jax.jit(ours.apply)({"params": params}, image, maps)
    assert out.dtype == jnp.dtype(dtype)
    close(out, theirs, dtype)


@pytest.mark.parametrize(
    ("width", "v2", "classes", "whole"),
    [
        (48, False, 36, 62_188_374),
        (48, False, 2, 62_186_708),
        (48, True, 36, 72_763_734),
        (36, False, 36, 35_073_810),
        (36, True, 36, 41_022_450),
        (24, False, 36, 15_703_854),
        (24, True, 36, 18_347_694),
        (12, False, 36, 4_078_506),
        (12, True, 36, 4_739_466),
    ],
)
def test_sizes_at_full_size(width, v2, classes, whole):
    image = jnp.zeros((1, 96, 96, 96, 1))

    network = Segmenter(Swin(width=width, v2=v2), SwinUNETR(width), classes)
    logits, variables = jax.eval_shape(lambda key: network.init_with_output(key, image), jax.random.key(0))
    params = variables["params"]
    assert logits.shape == (1, 96, 96, 96, classes)
    assert count(params) == whole
    if (width, v2) == (48, False):
        # Table I of the paper counts this much of it.
        assert count(params["encoder"]) + sum(count(params["decoder"][name]) for name in RESIDUAL) == 42_588_786


@pytest.mark.parity
def test_leaves_are_named_as_the_converter_expects(rng):
    image, maps = draws(rng, 1)
    shapes = jax.eval_shape(SwinUNETR(width=12).init, jax.random.key(0), jnp.asarray(image), tuple(map(jnp.asarray, maps)))
    theirs = as_flax(monai(1, maps), value)
    assert {k: v.shape for k, v in paths(shapes["params"]).items()} == {k: v.shape for k, v in paths(theirs).items()}


@pytest.fixture
def small(rng):
    """Random parameters, an image and its maps, in single precision."""
    image, maps = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), draws(rng, 1))
    shapes = jax.eval_shape(SwinUNETR(width=12).init, jax.random.key(0), image, tuple(maps))
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape, scale=s.size**-0.25), s.dtype), shapes)
    return params, image, tuple(maps)


@pytest.mark.slow
def test_recomputing_blocks_changes_nothing(small, close):
    params, *inputs = small
    plain, remat = (SwinUNETR(width=12, remat=r) for r in (False, True))
    run = lambda net: jax.jit(jax.value_and_grad(lambda p: jnp.sum(net.apply(p, *inputs) ** 2)))(params)  # noqa: E731
    close(run(remat), run(plain), times=3)
    assert "remat" in str(jax.make_jaxpr(lambda p: remat.apply(p, *inputs))(params))


@pytest.mark.slow
def test_computes_in_bfloat16_with_parameters_in_float32(small, close):
    params, *inputs = small
    half = SwinUNETR(width=12, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = jax.jit(half.apply)(params, *inputs)
    full = jax.jit(SwinUNETR(width=12).apply)(params, *inputs)
    assert out.dtype == jnp.bfloat16
    close(out.astype(jnp.float32), full, "bfloat16", times=3)
