"""The ViT: MONAI's numbers in MONAI's dialect, the paper's sizes in the paper's; what is masked is never seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer
from torch_trees import slope, value, vit

from brainseg_jax.core.pytree import count, paths
from brainseg_jax.models.layers import gelu
from brainseg_jax.models.vit import ViT, gather, patchify, sincos_table, unpatchify

torch = peer("torch")
MonaiViT = peer("monai.networks.nets:ViT")

TINY = {"grid": (2, 3, 1), "patch": 4, "width": 12, "depth": 3, "heads": 2, "hidden": 20}


def numbered(*shape):
    return jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)


def monai(qkv_bias):
    """MONAI's network of the sizes of TINY on two channels, every parameter random, in double precision."""
    torch.manual_seed(0)
    net = MonaiViT(
        in_channels=2, img_size=(8, 12, 4), patch_size=(4, 4, 4), hidden_size=12, mlp_dim=20, num_layers=3, num_heads=2,
        proj_type="perceptron", pos_embed_type="learnable", qkv_bias=qkv_bias,
    )  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.double()


@pytest.mark.optimised
@pytest.mark.parity
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_is_monai_forward_and_backward(x64, rng, close, dtype, qkv_bias):
    net = monai(qkv_bias)
    image = rng.normal(size=(2, 8, 12, 4, 2))
    theirs_in = torch.tensor(image).permute(0, 4, 1, 2, 3).requires_grad_()
    last, hidden = net(theirs_in)
    maps = [hidden[0], hidden[2], last]
    weights = rng.normal(size=(3, 2, 2, 3, 1, 12))
    sum((m.reshape(2, 2, 3, 1, 12) * torch.tensor(w)).sum() for m, w in zip(maps, weights, strict=True)).backward()

    ours = ViT(**TINY, positions="table", class_token=False, qkv_bias=qkv_bias, eps=1e-5, features=(0, 2), dtype=jnp.dtype(dtype))
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), vit(net, value))

    @jax.jit
    def run(params, image):
        def loss(params, image):
            maps = ours.apply({"params": params}, image)
            return sum(jnp.sum(m * w) for m, w in zip(maps, weights.astype(dtype), strict=True)), maps

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, image)

    (_, out), (grads, image_grad) = run(params, jnp.asarray(image, dtype))
    assert set(paths(params)) == set(paths(jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 8, 12, 4, 2)))["params"]))
    close(list(out), [m.detach().numpy().reshape(2, 2, 3, 1, 12) for m in maps], dtype)
    close(grads, vit(net, slope), dtype)
    close(image_grad, theirs_in.grad.permute(0, 2, 3, 4, 1).numpy(), dtype)


def test_patch_and_voxel_order_by_hand():
    """Patches row-major in (x, y, z), voxels within them in (x, y, z, c), channel fastest."""
    image = numbered(1, 4, 2, 6, 2)  # voxel (x, y, z, c) holds 24x + 12y + 2z + c
    patches = patchify(image, 2)
    assert patches.shape == (1, 6, 16)
    np.testing.assert_array_equal(patches[0, 1], [4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31, 40, 41, 42, 43])
    np.testing.assert_array_equal(patches[0, :, 0], [0, 4, 8, 48, 52, 56])


def test_unpatchify_undoes_patchify():
    image = numbered(2, 4, 6, 2, 3)
    np.testing.assert_array_equal(unpatchify(patchify(image, 2), (2, 3, 1), 2), image)


def test_gather_is_each_samples_own():
    tokens = numbered(2, 3, 2)
    np.testing.assert_array_equal(gather(tokens, jnp.array([[2, 0], [1, 1]])), [[[4, 5], [0, 1]], [[8, 9], [8, 9]]])


def test_sincos_by_hand():
    """Width 12: two frequencies, 1 and 1/100, and for each axis sin sin cos cos."""
    table = sincos_table((2, 3, 4), 12)
    at = (1, 2, 3)
    row = table[1 * 12 + 2 * 4 + 3]
    np.testing.assert_allclose(row, [f(a * w) for a in at for f in (np.sin, np.cos) for w in (1, 0.01)], rtol=1e-6)
    np.testing.assert_array_equal(table[0], [0, 0, 1, 1] * 3)


@pytest.mark.parametrize("width", [24, 20])
def test_sincos_places_differ_and_what_is_left_of_the_width_is_zero(width):
    table = sincos_table((10, 10, 10), width)
    assert table.shape == (1000, width) and len(np.unique(table, axis=0)) == 1000
    assert (table[:, 6 * (width // 6) :] == 0).all() and (np.abs(table[:, : 6 * (width // 6)]).max(0) > 0).all()


def test_separable_positions_are_a_slice_and_a_place_in_it(rng, close):
    net = ViT(**TINY, positions="separable", class_token=False)
    image = jnp.zeros((1, 8, 12, 4, 1))
    params = jax.jit(net.init)(jax.random.key(0), image)["params"]
    p = net.bind({"params": params}).position()
    plane, along = params["position"]["spatial"], params["position"]["temporal"]
    close(p, np.stack([along[x] + plane[place] for x in range(2) for place in range(3)]))


@pytest.mark.parity
def test_gelu_is_the_exact_one(close):
    x = np.linspace(-6, 6, 101)
    close(gelu(jnp.asarray(x, jnp.float32)), torch.nn.functional.gelu(torch.tensor(x)).numpy())


def test_sizes_of_the_paper_at_full_size():
    net = ViT(grid=(10, 10, 10), positions="separable", class_token=True)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 160, 160, 160, 1)))["params"]
    assert count(shapes) == 88_288_512
    assert shapes["blocks"]["attn"]["qkv"]["kernel"].shape == (12, 768, 2304)


@pytest.mark.parametrize(("class_token", "positions"), [(True, "separable"), (True, "sincos"), (False, "table")])
def test_tokens_depend_on_kept_patches_only(rng, class_token, positions):
    net = ViT(**TINY, class_token=class_token, positions=positions)
    image = jnp.asarray(rng.normal(size=(2, 8, 12, 4, 1)), jnp.float32)
    keep = jnp.array([[4, 1], [0, 5]])
    params = jax.jit(net.init)(jax.random.key(0), image)
    tokens = jax.jit(lambda image: net.apply(params, image, keep, method="tokens"))
    kept = np.zeros((2, 6), bool)
    np.put_along_axis(kept, np.asarray(keep), True, axis=1)
    noise = patchify(jnp.asarray(rng.normal(size=image.shape), jnp.float32), 4)
    hidden_changed, kept_changed = (image + unpatchify(noise * mask[..., None], (2, 3, 1), 4) for mask in (~kept, kept))
    assert tokens(image).shape == (2, 2 + class_token, 12)
    np.testing.assert_array_equal(tokens(hidden_changed), tokens(image))
    assert (np.abs(tokens(kept_changed) - tokens(image)).max((1, 2)) > 1e-3).all()


def test_all_kept_in_order_is_the_whole_volume(rng, close):
    net = ViT(**TINY, class_token=True)
    image = jnp.asarray(rng.normal(size=(1, 8, 12, 4, 1)), jnp.float32)
    params = jax.jit(net.init)(jax.random.key(0), image)
    (whole,) = net.apply(params, image)
    tokens = net.apply(params, image, jnp.arange(6)[None], method="tokens")
    close(tokens[:, 1:], whole.reshape(1, 6, 12))


def test_recomputing_blocks_changes_nothing(rng, close):
    image = jnp.asarray(rng.normal(size=(1, 8, 12, 4, 1)), jnp.float32)
    plain, remat = (ViT(**TINY, remat=remat) for remat in (False, True))
    params = jax.jit(plain.init)(jax.random.key(0), image)
    run = lambda net: jax.jit(jax.value_and_grad(lambda p: jnp.sum(net.apply(p, image)[0] ** 3)))(params)  # noqa: E731
    close(run(remat), run(plain))
    assert "remat" in str(jax.make_jaxpr(lambda p: remat.apply(p, image))(params))


def test_blocks_start_with_different_weights():
    """One stacked kernel, but each block its own draw."""
    params = jax.jit(ViT(**TINY).init)(jax.random.key(0), jnp.zeros((1, 8, 12, 4, 1)))["params"]
    kernel = params["blocks"]["attn"]["qkv"]["kernel"]
    assert kernel.shape == (3, 12, 36) and not np.allclose(kernel[0], kernel[1])
    assert np.abs(kernel).max() <= np.sqrt(6 / (12 + 36))  # Xavier's bound of one block, not of the stack


def test_computes_in_bfloat16_with_parameters_in_float32(rng, close):
    image = jnp.asarray(rng.normal(size=(1, 8, 12, 4, 1)), jnp.float32)
    half, full = ViT(**TINY, dtype=jnp.bfloat16), ViT(**TINY)
    params = jax.jit(half.init)(jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    (out,) = half.apply(params, image)
    assert out.dtype == jnp.bfloat16
    close(out, full.apply(params, image)[0], "bfloat16", times=3)
