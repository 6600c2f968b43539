"""Masked autoencoding against a slow reference that does what the paper's code does: append mask tokens, shuffle back, predict all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer

from brainseg_jax.core.pytree import count
from brainseg_jax.models.vit import ViT, patchify
from brainseg_jax.objectives.mae import MAE, kept_tokens, patch_statistics, random_masks

torch = peer("torch")

GRID, PATCH = (2, 2, 3), 2
SHAPE = (2, 4, 4, 6, 1)


def tiny(dtype=jnp.float32, positions="separable", class_token=True, normalize_targets=False, remat=False, mask_ratio=0.7):
    encoder = ViT(
        GRID, PATCH, width=12, depth=2, heads=3, hidden=20, positions=positions, class_token=class_token, remat=remat, dtype=dtype
    )
    return MAE(encoder, mask_ratio, width=8, depth=2, heads=2, normalize_targets=normalize_targets)


def start(objective, image, dtype=jnp.float32):
    """Parameters, every one random: zeros of biases would hide errors."""
    keys = {"params": jax.random.key(0), "mask": jax.random.key(1)}
    shapes = jax.eval_shape(objective.init, keys, {"image": image})["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), dtype), shapes)


def masks_of(objective, params, image, key):
    return objective.apply({"params": params}, image, rngs={"mask": key}, method="_masks")


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def norm(p, x):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], eps=1e-6)


def blocks(p, x, depth, heads):
    """timm's block: fused qkv, [q | k | v] head-major."""
    b, n, d = x.shape
    for i in range(depth):
        layer = jax.tree.map(lambda a, i=i: a[i], p)
        q, k, v = linear(layer["attn"]["qkv"], norm(layer["norm1"], x)).reshape(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) * (d // heads) ** -0.5, dim=-1)
        x = x + linear(layer["attn"]["out_proj"], (weights @ v).transpose(1, 2).reshape(b, n, d))
        h = torch.nn.functional.gelu(linear(layer["mlp"]["linear1"], norm(layer["norm2"], x)))
        x = x + linear(layer["mlp"]["linear2"], h)
    return x


def places(p):
    return (p["temporal"][:, None] + p["spatial"][None]).reshape(-1, p["spatial"].shape[-1])


def reference(p, image, keep, masked, normalize_targets):
    """The paper's masked autoencoder with a given mask; p is our tree of torch tensors."""
    b, n = image.shape[0], int(np.prod(GRID))
    x, y, z = GRID
    patches = image.reshape(b, x, PATCH, y, PATCH, z, PATCH).permute(0, 1, 3, 5, 2, 4, 6).reshape(b, n, PATCH**3)
    rows = torch.arange(b)[:, None]

    e = p["encoder"]
    tokens = (linear(e["patch_embed"], patches) + places(e["position"]))[rows, keep]
    tokens = torch.cat([(e["cls_token"] + e["cls_position"]).expand(b, 1, -1), tokens], dim=1)
    tokens = linear(p["embed"], norm(e["norm"], blocks(e["blocks"], tokens, 2, 3)))

    restore = torch.argsort(torch.cat([keep, masked], dim=1), dim=1)
    full = torch.cat([tokens[:, 1:], p["mask_token"].expand(b, masked.shape[1], -1)], dim=1)[rows, restore]
    full = torch.cat([tokens[:, :1] + p["cls_position"], full + places(p["position"])], dim=1)
    predicted = linear(p["predict"], norm(p["norm"], blocks(p["blocks"], full, 2, 2)))[:, 1:]

    target = patches
    if normalize_targets:
        target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6) ** 0.5
    hidden = torch.zeros(b, n, dtype=torch.float64).scatter(1, masked, 1.0)
    return (((predicted - target) ** 2).mean(-1) * hidden).sum() / hidden.sum()


@pytest.mark.optimised
@pytest.mark.parity
@pytest.mark.parametrize("normalize_targets", [False, True])
def test_loss_and_gradient_are_the_papers(x64, rng, close, normalize_targets):
    objective = tiny(jnp.float64, normalize_targets=normalize_targets)
    image = rng.normal(size=SHAPE)
    params = start(objective, jnp.asarray(image), jnp.float64)
    key = jax.random.key(5)
    run = jax.jit(jax.value_and_grad(lambda p: objective.apply({"params": p}, {"image": jnp.asarray(image)}, rngs={"mask": key})[0]))
    ours, gradient = run(params)

    keep, masked = (torch.tensor(np.asarray(index)).long() for index in masks_of(objective, params, jnp.asarray(image), key))
    theirs = jax.tree.map(lambda a: torch.tensor(np.asarray(a), requires_grad=True), params)
    loss = reference(theirs, torch.tensor(image[..., 0]), keep, masked, normalize_targets)
    loss.backward()
    close(ours, loss.detach().numpy(), "float64")
    close(gradient, jax.tree.map(lambda a: a.grad.numpy(), theirs), "float64")


def test_sizes_of_the_paper_at_full_size():
    objective = MAE(ViT(grid=(10, 10, 10), positions="separable", class_token=True))
    keys = {"params": jax.random.key(0), "mask": jax.random.key(1)}
    shapes = jax.eval_shape(objective.init, keys, {"image": jnp.zeros((1, 160, 160, 160, 1))})["params"]
    assert (count(shapes), count(shapes["encoder"])) == (103_451_392, 88_288_512)


@pytest.mark.parametrize(
    ("n", "ratio", "kept"), [(1000, 0.85, 150), (1000, 0.9, 100), (216, 0.75, 54), (8, 0.75, 2), (10, 0.7, 3), (7, 0.5, 3)]
)
def test_kept_tokens(n, ratio, kept):
    assert kept_tokens(n, ratio) == kept


def test_masks_part_the_patches():
    keep, masked = random_masks(jax.random.key(0), 5, 12, 3)
    assert keep.shape == (5, 3) and masked.shape == (5, 9)
    np.testing.assert_array_equal(np.sort(np.concatenate([keep, masked], axis=1), axis=1), np.tile(np.arange(12), (5, 1)))


def test_masks_are_uniform_over_places():
    """Each of 20 places is kept in 5 of 20 draws: 1000 ± 27 (one sigma) of 4000."""
    keep, _ = random_masks(jax.random.key(3), 4000, 20, 5)
    counts = np.bincount(np.asarray(keep).ravel(), minlength=20)
    assert np.abs(counts - 1000).max() < 5 * 27.4


def test_masks_differ_by_sample_and_key_only():
    keep, _ = random_masks(jax.random.key(0), 4, 100, 20)
    again, _ = random_masks(jax.random.key(0), 4, 100, 20)
    other, _ = random_masks(jax.random.key(1), 4, 100, 20)
    np.testing.assert_array_equal(keep, again)
    assert len({frozenset(row) for row in np.concatenate([keep, other]).tolist()}) == 8


def test_weight_zero_does_not_count(rng, close):
    objective, image = tiny(), jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    params, key = start(objective, image), jax.random.key(5)
    run = jax.jit(lambda image, weight: objective.apply({"params": params}, {"image": image, "weight": weight}, rngs={"mask": key}))
    loss, metrics = run(image, jnp.array([1.0, 0.0]))
    garbled, _ = run(image.at[1].mul(100.0), jnp.array([1.0, 0.0]))
    both, sums = run(image, jnp.ones(2))
    other, _ = run(image, jnp.array([0.0, 1.0]))
    assert float(loss) == float(garbled) and metrics["loss"][1] == 1
    close(both, (loss + other) / 2)
    close(sums["loss"], (loss + other, jnp.float32(2)))
    nothing, empty = run(image, jnp.zeros(2))
    assert float(nothing) == 0 and float(empty["loss"][1]) == 0


def test_patch_statistics_by_hand():
    mean, spread = patch_statistics(jnp.array([[[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]]]))
    np.testing.assert_allclose(mean[0, :, 0], [3.0, 5.0])
    np.testing.assert_allclose(spread[0, :, 0], [np.sqrt(14 / 3 + 1e-6), 1e-3], rtol=1e-6)


@pytest.mark.parametrize("normalize_targets", [False, True])
def test_pictures(rng, close, normalize_targets):
    """Kept patches are the image's; hidden ones NaN, then predictions, from which the loss follows."""
    objective, image = tiny(normalize_targets=normalize_targets), jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    params, key = start(objective, image), jax.random.key(5)
    original, masked, painted = objective.apply({"params": params}, {"image": image}, rngs={"mask": key}, method="pictures")
    np.testing.assert_array_equal(original, image)
    keep, hidden = masks_of(objective, params, image, key)
    true, nan, guess = (np.asarray(patchify(volume, PATCH)) for volume in (image, masked, painted))
    for b in range(2):
        np.testing.assert_array_equal(nan[b, keep[b]], true[b, keep[b]])
        np.testing.assert_array_equal(guess[b, keep[b]], true[b, keep[b]])
        assert np.isnan(nan[b, hidden[b]]).all()
    error = (guess - true)[np.arange(2)[:, None], hidden]
    if normalize_targets:
        error = error / np.sqrt(true.var(-1, keepdims=True, ddof=1) + 1e-6)[np.arange(2)[:, None], hidden]
    close(objective.apply({"params": params}, {"image": image}, rngs={"mask": key})[0], np.mean(error**2), times=10)


@pytest.mark.parametrize(("positions", "class_token"), [("sincos", True), ("table", False)])
def test_each_dialect_learns_with_all_its_parameters(rng, positions, class_token):
    objective, image = tiny(positions=positions, class_token=class_token), jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    params = start(objective, image)
    loss = lambda p: objective.apply({"params": p}, {"image": image}, rngs={"mask": jax.random.key(0)})[0]  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_recomputing_blocks_changes_nothing(rng, close):
    image = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    params = start(tiny(), image)

    def run(remat):
        loss = lambda p: tiny(remat=remat).apply({"params": p}, {"image": image}, rngs={"mask": jax.random.key(0)})[0]  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    close(run(True), run(False))


def test_what_is_hidden_changes_the_target_and_not_the_prediction(rng):
    objective, image = tiny(), jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    params, key = start(objective, image), jax.random.key(5)
    _, masked = masks_of(objective, params, image, key)
    draw = lambda image: objective.apply({"params": params}, {"image": image}, rngs={"mask": key}, method="pictures")[2]  # noqa: E731
    patches = patchify(image, PATCH)
    other = patches.at[jnp.arange(2)[:, None], masked].add(1.0)
    cubes = other.reshape(2, *GRID, PATCH, PATCH, PATCH, 1).transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(SHAPE)
    np.testing.assert_array_equal(draw(cubes), draw(image))
