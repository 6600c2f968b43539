"""Pretraining the Swin: turns and cut-outs against NumPy, contrast by hand and MONAI's, the heads against PyTorch."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer
from torch_trees import conv, doubling, head, linear, slope, swin, value

from brainseg_jax.config.checks import check
from brainseg_jax.config.keys import base
from brainseg_jax.config.resolve import with_sources
from brainseg_jax.core.errors import InputError
from brainseg_jax.core.pytree import count, paths
from brainseg_jax.models.swin import Swin
from brainseg_jax.objectives.ssl import (
    NOISE,
    OWN,
    SSL,
    Interpolated,
    Transposed,
    cutout_boxes,
    cutout_paper,
    cutout_share,
    donor_crops,
    double,
    every,
    max_boxes,
    newly_covered,
    nt_xent,
    rotate,
    view,
)
from brainseg_jax.parallel.sharding import batch_sharding, make_mesh
from brainseg_jax.training.loop import train
from brainseg_jax.training.metrics_log import read_metrics
from brainseg_jax.training.step import init_params

torch = peer("torch")
ContrastiveLoss = peer("monai.losses:ContrastiveLoss")
SwinTransformer = peer("monai.networks.nets.swin_unetr:SwinTransformer")

# Two voxels at the deepest: the least that an instance norm, and the published heads, can do with.
SIZE = (64, 32, 32)


def tiny(dtype=jnp.float32, drop_path=0.0, **fields):
    return SSL(Swin(12, depths=(1, 1, 1, 1), drop_path=drop_path, dtype=dtype), **({"embedding": 16} | fields))


def tree(objective, size=SIZE, dtype=jnp.float32):
    """Parameters, every one random: zeros of biases would hide errors."""
    shapes = jax.eval_shape(lambda: init_params(objective, {"image": jnp.zeros((1, *size, 1))}, 0))
    rng = np.random.default_rng(2)
    draw = lambda leaf: rng.normal(scale=leaf.shape[-2:][0] ** -0.5 if leaf.ndim > 1 else 0.3, size=leaf.shape)  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf), dtype), shapes)


# ---- turns


@pytest.mark.parity
def test_turns_are_numpys_and_torchs(rng):
    """The published plane: axes 2 and 3 of a sample [c x y z]."""
    image, k = rng.normal(size=(4, 5, 6, 6, 2)).astype(np.float32), [0, 1, 2, 3]
    turned = rotate(jnp.asarray(image), jnp.array(k))
    for ours, sample, quarters in zip(turned, image, k, strict=True):
        np.testing.assert_array_equal(ours, np.rot90(sample, quarters, axes=(1, 2)))
        theirs = torch.rot90(torch.tensor(np.moveaxis(sample, -1, 0)), quarters, (2, 3))
        np.testing.assert_array_equal(np.moveaxis(np.asarray(ours), -1, 0), theirs)
    np.testing.assert_array_equal(rotate(turned, -jnp.array(k)), image)


def test_labels_are_the_turns_and_uniform(rng):
    image = jnp.asarray(rng.uniform(size=(400, 20, 20, 20, 1)), jnp.float32)
    turned, _, k = jax.jit(view, static_argnums=(3, 4))(jax.random.key(0), image, jnp.ones(400), "share", 0.0)
    for i in range(0, 400, 40):
        np.testing.assert_array_equal(turned[i], np.rot90(image[i], int(k[i]), axes=(0, 1, 2)[1:]))
    assert np.abs(np.bincount(k, minlength=4) - 100).max() < 5 * 8.7  # a standard deviation is 8.7


# ---- cut-out


def constants(b, n=32):
    """Sample i holds 10 + i everywhere: what is in [0, 1] is noise, anything else says whose it is."""
    return jnp.broadcast_to(10.0 + jnp.arange(b)[:, None, None, None, None], (b, n, n, n, 1))


def published_union(rng, n, target):
    """Share of voxels that the published procedure overwrites in one pass, box by box."""
    cut, total = np.zeros((n, n, n), bool), 0
    least = int(0.05 * n)
    while total < target:
        at = rng.integers(0, n - least, 3)
        end = np.minimum(at + rng.integers(least, int(0.25 * n), 3), n)
        cut[at[0] : end[0], at[1] : end[1], at[2] : end[2]] = True
        total += np.prod(end - at)
    return cut.mean()


def test_boxes_are_those_of_the_published_procedure(rng):
    """The share of 300 samples against 300 of a loop in NumPy: mean and spread."""
    n, b = 32, 300
    target = 0.2 * n**3
    run = jax.jit(
        lambda: cutout_boxes(jax.random.key(0), constants(b), jnp.full(b, target), jnp.zeros(b), max_boxes((n,) * 3, target), every)[1]
    )
    ours = np.mean(np.asarray(run()) == NOISE, axis=(1, 2, 3))
    theirs = np.array([published_union(rng, n, target) for _ in range(b)])
    assert abs(ours.mean() - theirs.mean()) < 5 * theirs.std() * (2 / b) ** 0.5
    assert 0.8 < ours.std() / theirs.std() < 1.25


def test_one_box(rng):
    """Sides from 5 % to below a quarter, shorter only at the far border; noise from 0 to 1; all else as it was."""
    image = jnp.asarray(10 + rng.uniform(size=(60, 40, 20, 60, 2)), jnp.float32)
    noised, held = jax.jit(lambda: cutout_boxes(jax.random.key(0), image, jnp.ones(60), jnp.zeros(60), 1, newly_covered))()
    lengths = []
    for before, after, box in zip(np.asarray(image), np.asarray(noised), np.asarray(held), strict=True):
        at = np.argwhere(box == NOISE)
        low, high = at.min(0), at.max(0) + 1
        assert (high - low).prod() == len(at)
        assert all(least <= side or end == n for least, side, end, n in zip((2, 1, 3), high - low, high, box.shape, strict=True))
        inside = after[box == NOISE]
        assert inside.min() == pytest.approx(0, abs=1e-6) and inside.max() == pytest.approx(1, abs=1e-6)
        np.testing.assert_array_equal(after[box == OWN], before[box == OWN])
        lengths.append(high - low)
    np.testing.assert_array_equal(np.max(lengths, axis=0), (9, 4, 14))


@pytest.mark.parametrize(("share", "b"), [(0.3, 1), (0.3, 200), (0.75, 40), (0.0, 4)])
def test_the_true_share_is_met(share, b):
    """In every one of the samples, and passed by less than a box."""
    cut = jax.jit(cutout_share, static_argnums=3)(jax.random.key(1), constants(b), jnp.ones(b), share)
    shares = np.mean(np.asarray(cut) != constants(b), axis=(1, 2, 3, 4))
    assert shares.min() >= share and shares.max() < share + (7 / 32) ** 3
    if b == 1:
        assert cut.min() >= 0 and np.all((cut <= 1) | (cut == 10))  # nobody to take from: noise only


def test_half_of_the_share_is_another_samples():
    cut = np.asarray(jax.jit(cutout_share, static_argnums=3)(jax.random.key(1), constants(100), jnp.ones(100), 0.3))
    foreign = (cut > 1) & (cut != constants(100))
    assert 0.13 < foreign.mean() < 0.17
    donors = [np.unique(sample[mask]) for sample, mask in zip(cut, foreign, strict=True)]
    assert all(len(own) == 1 for own in donors) and len(np.unique(donors)) > 40


def test_the_published_cut_keeps_its_budget(rng):
    """U(0, 30 %) of the volume, twice, overlaps counted again."""
    b, n = 200, 32
    cut = np.asarray(jax.jit(cutout_paper, static_argnums=3)(jax.random.key(0), constants(b), jnp.ones(b), 0.3))
    shares = np.mean(cut != constants(b), axis=(1, 2, 3, 4))

    def published():
        noise, other = (published_union(rng, n, rng.uniform(0, 0.3) * n**3) for _ in range(2))
        return 1 - (1 - noise) * (1 - other)  # where they lie does not depend on each other

    expected = np.array([published() for _ in range(b)])
    assert abs(shares.mean() - expected.mean()) < 5 * expected.std() * (2 / b) ** 0.5
    assert shares.max() < 0.6 and shares.std() > 0.05


def test_published_samples_are_cut_one_after_the_other():
    """What is taken from a later sample is untouched; from an earlier one it may be noise already."""
    chained = 0
    for seed in range(6):
        first, second = np.asarray(jax.jit(cutout_paper, static_argnums=3)(jax.random.key(seed), constants(2), jnp.ones(2), 0.3))
        assert set(np.unique(first[first > 1])) <= {10, 11} and set(np.unique(second[second > 1])) <= {10, 11}
        same = (first == second) & (first <= 1)
        chained += bool(same.any())
    assert chained  # noise of the first sample, bit for bit, in the second


def test_nobody_takes_from_padding():
    weight = jnp.array([1.0, 1.0, 0.0, 1.0])
    for own in (0.0, 1.0):
        chosen = [donor_crops(jax.random.key(i), weight, own) for i in range(50)]
        who = np.array([donor for donor, _ in chosen])
        assert set(np.unique(who)) == {0, 1, 3} and np.array_equal(np.any(who[:, 0] == 0), bool(own))
    assert not donor_crops(jax.random.key(0), jnp.array([1.0, 0.0]), 0.0)[1][0]


# ---- losses


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_contrast_by_hand(temperature):
    """Cosines 1 to the same direction, 0 to a right angle, −1 to the opposite; lengths do not matter."""
    z = jnp.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, 0.5]])
    e = np.exp(1 / temperature)
    loss, _ = nt_xent(z, jnp.ones(4), temperature)
    np.testing.assert_allclose(loss, np.log([2 + 1 / e, 2 + e, 2 + 1 / e, 2 + e]), rtol=1e-6)


def test_top1_by_hand():
    z = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.8, 0.3]])  # the last is nearest to the second
    np.testing.assert_array_equal(nt_xent(z, jnp.ones(4), 0.5)[1], [True, True, True, False])


def test_a_single_sample_has_no_negatives(rng):
    loss, first = nt_xent(jnp.asarray(rng.normal(size=(2, 5)), jnp.float32), jnp.ones(2), 0.5)
    assert np.all(loss == 0) and np.all(first)


@pytest.mark.parity
@pytest.mark.parametrize("b", [1, 2, 7])
def test_contrast_is_monais(x64, rng, close, b):
    a, c = rng.normal(size=(2, b, 6))
    theirs = [torch.tensor(v, requires_grad=True) for v in (a, c)]
    loss = ContrastiveLoss(temperature=0.5)(*theirs)
    loss.backward()
    z = jnp.asarray(np.stack([a, c], axis=1).reshape(2 * b, 6))
    ours, gradient = jax.value_and_grad(lambda z: jnp.mean(nt_xent(z, jnp.ones(2 * b), 0.5)[0]))(z)
    if b > 1:
        expected = np.stack([v.grad.numpy() for v in theirs], axis=1).reshape(2 * b, 6)
        close((ours, gradient), (loss.item(), expected), "float64")
    else:
        assert abs(ours - loss.item()) < 1e-12 and np.abs(gradient).max() < 1e-12


def test_padding_is_no_negative(rng, close):
    z, weight = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), jnp.array([1.0, 1, 1, 1, 0, 0])
    loss, first = nt_xent(z, weight, 0.5)
    close(loss[:4], nt_xent(z[:4], jnp.ones(4), 0.5)[0])
    np.testing.assert_array_equal(first[:4], nt_xent(z[:4], jnp.ones(4), 0.5)[1])
    assert np.isfinite(loss).all() and np.isfinite(nt_xent(z, jnp.zeros(6), 0.5)[0]).all()


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_contrast_is_over_all_devices(rng, close, devices):
    z = jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    mean = jax.jit(lambda z: jnp.mean(nt_xent(z, jnp.ones(16), 0.5)[0]))
    rows = batch_sharding(make_mesh(devices, 1, jax.devices()[:devices]))
    close(mean(jax.device_put(z, rows)), mean(z))


# ---- decoders and the whole network against PyTorch


@pytest.mark.parity
def test_doubling_is_torchs(x64, rng, close):
    x = rng.normal(size=(2, 3, 4, 1, 5))
    theirs = torch.nn.functional.interpolate(torch.tensor(x).movedim(-1, 1), scale_factor=2, mode="trilinear", align_corners=False)
    close(double(jnp.asarray(x)), theirs.movedim(1, -1).numpy(), "float64")


FEATURES = (8, 4, 2, 1, 1)


def torch_decoder(name, deep, features, channels):
    layers = []
    for before, after in zip((deep, *features), features, strict=False):
        norm = [torch.nn.InstanceNorm3d(after), torch.nn.LeakyReLU(0.01)]
        if name == "vae":
            up = torch.nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
            layers += [torch.nn.Conv3d(before, after, 3, padding=1), *norm, up]
        else:
            layers += [torch.nn.ConvTranspose3d(before, after, 2, 2, bias=False), *norm]
    return torch.nn.Sequential(*layers, torch.nn.Conv3d(features[-1], channels, 1))


def decoder_as_flax(net, of):
    *layers, out = [layer for layer in net if hasattr(layer, "weight") and layer.weight is not None]
    tree = {"out": head(out, of)}
    for i, layer in enumerate(layers):
        if isinstance(layer, torch.nn.ConvTranspose3d):
            tree[f"deconv{i}"] = doubling(layer, of)
        else:
            tree[f"conv{i}"] = conv(layer, of) | {"bias": of(layer.bias)}
    return tree


@pytest.mark.parity
@pytest.mark.parametrize(("name", "ours"), [("vae", Interpolated), ("deconv", Transposed)])
def test_decoders_are_torchs(x64, rng, close, name, ours):
    torch.manual_seed(0)
    features, x = (6, 4, 3), rng.normal(size=(2, 2, 3, 2, 8))
    net, ours = torch_decoder(name, 8, features, 2).double(), ours(features, 2, jnp.float64)
    theirs = torch.tensor(x).movedim(-1, 1).requires_grad_()
    out = net(theirs)
    g = rng.normal(size=out.shape)
    (out * torch.tensor(g)).sum().backward()

    @jax.jit
    def run(params, x, g):
        out, pull = jax.vjp(lambda p, x: ours.apply({"params": p}, x), params, x)
        return out, *pull(g)

    params = jax.tree.map(jnp.asarray, decoder_as_flax(net, value))
    result, gradient, towards = run(params, jnp.asarray(x), jnp.asarray(np.moveaxis(g, 1, -1)))
    close((result, towards), (np.moveaxis(value(out), 1, -1), np.moveaxis(slope(theirs), 1, -1)), "float64")
    expected = decoder_as_flax(net, slope)
    for i in range(3 * (name == "vae")):
        # A norm takes the bias away: its gradient is 0, in PyTorch but for rounding.
        assert np.all(gradient[f"conv{i}"].pop("bias") == 0) and np.abs(expected[f"conv{i}"].pop("bias")).max() < 1e-12
    close(gradient, expected, "float64")


class SSLHead(torch.nn.Module):
    """The published network, of MONAI's encoder: heads on the first and the second token of the deepest map, and the decoder."""

    def __init__(self, width, embedding):
        super().__init__()
        self.swin = SwinTransformer(1, width, (7,) * 3, (2,) * 3, (1,) * 4, (3, 6, 12, 24), norm_layer=torch.nn.LayerNorm, spatial_dims=3)
        self.rotation = torch.nn.Linear(16 * width, 4)
        self.contrast = torch.nn.Linear(16 * width, embedding)
        self.decoder = torch_decoder("vae", 16 * width, [f * width for f in FEATURES], 1)

    def forward(self, x):
        deepest = self.swin(x, True)[-1]
        tokens = deepest.flatten(2).transpose(1, 2)
        return self.rotation(tokens[:, 0]), self.contrast(tokens[:, 1]), self.decoder(deepest).movedim(1, -1)


def as_flax(net, of):
    heads = {"rotation": linear(net.rotation, of), "contrast": linear(net.contrast, of)}
    return {"encoder": swin(net.swin, of), "reconstruct": decoder_as_flax(net.decoder, of)} | heads


@pytest.mark.parity
@pytest.mark.slow
def test_the_network_is_the_published_one(x64, rng, close):
    """MONAI's encoder and the published heads in PyTorch: predictions, the sum of the three losses, and every gradient."""
    torch.manual_seed(0)
    net = SSLHead(12, 16).double()
    image, target, k = rng.normal(size=(4, *SIZE, 1)), rng.normal(size=(4, *SIZE, 1)), torch.tensor([0, 3, 1, 2])
    logits, z, painted = net(torch.tensor(image).movedim(-1, 1))
    cross = torch.nn.functional.cross_entropy(logits, k)
    loss = cross + ContrastiveLoss(temperature=0.5)(z[::2], z[1::2]) + torch.nn.functional.l1_loss(painted, torch.tensor(target))
    loss.backward()

    class Given(SSL):
        """With views that are given instead of drawn."""

        def _views(self, image, weight):
            return jnp.asarray(target), jnp.asarray(image), jnp.asarray(k.numpy(), jnp.int32)

    ours = Given(Swin(12, depths=(1, 1, 1, 1), dtype=jnp.float64), heads="tokens", embedding=16)
    params = jax.tree.map(jnp.asarray, as_flax(net, value))
    batch = {"image": jnp.asarray(image), "weight": jnp.ones(2)}
    run = jax.jit(jax.value_and_grad(lambda p: ours.apply({"params": p}, batch)[0]))
    predicted = jax.jit(lambda p: ours.apply({"params": p}, batch["image"], False, method="_predict"))(params)
    close(predicted, tuple(value(out) for out in (logits, z, painted)), "float64")
    total, gradient = run(params)
    close(total, loss.item(), "float64")
    expected = as_flax(net, slope)
    for i in range(5):
        gradient["reconstruct"][f"conv{i}"].pop("bias"), expected["reconstruct"][f"conv{i}"].pop("bias")
    close(gradient, expected, "float64")


def test_sizes_and_names_are_the_published_ones():
    objective = SSL(Swin(48), heads="tokens")
    params = jax.eval_shape(lambda: init_params(objective, {"image": jnp.zeros((1, 96, 96, 96, 1))}, 0))
    assert (count(params), count(params["encoder"])) == (19_097_191, 8_062_002)
    heads = {path: leaf.shape for path, leaf in paths(params).items() if not path.startswith("encoder")}
    sides = (768, 384, 192, 96, 48, 48)
    expected = {"rotation/kernel": (768, 4), "rotation/bias": (4,), "contrast/kernel": (768, 512), "contrast/bias": (512,)}
    expected |= {f"reconstruct/conv{i}/kernel": (3, 3, 3, *sides[i : i + 2]) for i in range(5)}
    expected |= {f"reconstruct/conv{i}/bias": (sides[i + 1],) for i in range(5)}
    assert heads == expected | {"reconstruct/out/kernel": (48, 1), "reconstruct/out/bias": (1,)}
    # The transposed decoder: kernels [i 8·o] in place of convolutions.
    other = SSL(Swin(48), decoder="deconv")
    decoder = jax.eval_shape(lambda: init_params(other, {"image": jnp.zeros((1, 96, 96, 96, 1))}, 0))["reconstruct"]
    assert {name: leaf["kernel"].shape for name, leaf in decoder.items()} == {
        **{f"deconv{i}": (sides[i], 8 * sides[i + 1]) for i in range(5)},
        "out": (48, 1),
    }


# ---- the objective


@pytest.fixture(scope="module")
def evaluated():
    """`evaluated(batch, **fields)`: (loss, metrics) of a tiny network with random parameters."""

    @cache
    def compiled(**fields):
        objective = tiny(**fields)
        rngs = {"views": jax.random.key(5), "drop_path": jax.random.key(6)}
        return tree(objective), jax.jit(lambda p, batch: objective.apply({"params": p}, batch, rngs=rngs))

    def run(batch, **fields):
        params, evaluate = compiled(**fields)
        return evaluate(params, batch)

    return run


def test_metrics_and_their_sum(rng, evaluated, close):
    batch = {"image": jnp.asarray(rng.uniform(size=(2, *SIZE, 1)), jnp.float32)}
    loss, metrics = evaluated(batch, weights=(1.0, 2.0, 0.5))
    means = {name: total / number for name, (total, number) in metrics.items()}
    assert set(means) == {"loss", "rotation", "contrast", "reconstruction", "rotation_accuracy", "contrast_top1"}
    assert all(number == 4 for _, number in metrics.values())
    close(loss, means["loss"])
    close(loss, means["rotation"] + 2 * means["contrast"] + 0.5 * means["reconstruction"])
    assert means["contrast"] > 0 and means["reconstruction"] > 0 and 0 <= means["rotation_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("cutout", ["share", "paper"])
def test_what_padding_holds_changes_nothing(rng, evaluated, cutout):
    image = rng.uniform(size=(4, *SIZE, 1)).astype(np.float32)
    other = image.copy()
    other[3] = rng.normal(size=other[3].shape)
    weight = jnp.array([1.0, 1, 1, 0])
    one, two = (evaluated({"image": jnp.asarray(i), "weight": weight}, cutout=cutout) for i in (image, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert one[1]["loss"][1] == 6
    _, nothing = evaluated({"image": jnp.asarray(image), "weight": jnp.zeros(4)}, cutout=cutout)
    assert all(total == number == 0 for total, number in nothing.values())


def test_pictures(rng):
    """The image as it came; 30 % of it overwritten; and a whole reconstruction."""
    objective, image = tiny(), jnp.asarray(rng.uniform(size=(3, *SIZE, 1)), jnp.float32)
    draw = jax.jit(lambda p: objective.apply({"params": p}, {"image": image}, rngs={"views": jax.random.key(1)}, method="pictures"))
    original, cut, painted = draw(tree(objective))
    np.testing.assert_array_equal(original, image)
    assert np.mean(cut != image) == pytest.approx(0.3, abs=0.02) and painted.shape == image.shape and np.isfinite(painted).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{}, {"heads": "tokens", "cutout": "paper", "decoder": "deconv", "drop_path": 0.3}], ids=["ours", "the other choices"]
)
def test_every_parameter_learns(rng, fields):
    objective, image = tiny(**fields), jnp.asarray(rng.uniform(size=(2, *SIZE, 1)), jnp.float32)
    rngs = {"views": jax.random.key(5), "drop_path": jax.random.key(6)}
    loss = lambda p: objective.apply({"params": p}, {"image": image}, True, rngs=rngs)[0]  # noqa: E731
    gradient = paths(jax.jit(jax.grad(loss))(tree(objective)))
    still = {path for path, leaf in gradient.items() if not np.abs(leaf).max() > 0}
    assert still == {path for path in gradient if path.startswith("reconstruct/conv") and path.endswith("bias")}
    assert all(np.isfinite(leaf).all() for leaf in gradient.values())


@pytest.mark.slow
def test_it_learns_to_tell_rotations_on_the_sample_cohort(small, tmp_path):
    """Whole heads at 6 mm: chance is a quarter. Small windows, since attention is most of so narrow a network's time."""
    config = small(
        **{
            "objective": "ssl", "encoder": "swin", "swin.width": 12, "swin.depths": (1, 1, 1, 1), "swin.window": 4,
            "steps": 30, "optim.lr": 2e-3, "optim.warmup": 0.1,
            "data.subjects": 4, "data.spacing": 6.0, "data.size": (64, 32, 32), "data.crop": (64, 32, 32), "data.batch": 4,
            "data.cache": str(tmp_path),
        }
    )  # fmt: skip
    train(config, with_sources(config, set(), "test.py"), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = {name: [row[name] for row in rows if row["kind"] == "train"] for name in ("rotation_accuracy", "reconstruction")}
    # Of 80 views: by chance 0.25 ± 0.05. Where training stands after so few steps depends on rounding: 0.9 was seen.
    assert np.mean(losses["rotation_accuracy"][-10:]) > 0.5
    assert np.mean(losses["reconstruction"][-5:]) < 0.8 * np.mean(losses["reconstruction"][:5])
    validation = [row for row in rows if row["kind"] == "eval"][-1]
    assert set(validation) == {"step", "kind", "time", *SSL.metrics}
    assert (tmp_path / "run" / "pictures" / "step_000030.png").exists()


# ---- the config


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"data.crop": (96, 96, 64)}, r"data\.crop .* \(96, 64, 64\)"),
        ({"data.crop": (80, 80, 80)}, r"data\.crop .* multiples of 32"),
        ({"data.crop": (32, 32, 32)}, r"data\.crop .* \(64, 64, 64\)"),
        ({"encoder": "vit"}, r"encoder is vit; .* swin"),
        ({"objective": "mae"}, r"encoder is swin; .* vit"),
        ({"optim.accumulate": 2, "data.batch": 4}, r"optim\.accumulate 2 .*remat=True"),
        ({"data.batch": 1}, r"data\.batch 1 leaves contrast no other crop .* ssl\.weights"),
        ({"swin.width": 10}, r"swin\.width 10 makes stage 1 10 wide, .* 3 of swin\.heads; use e\.g\. 12"),
        ({"swin.heads": (3, 6, 12)}, r"swin\.depths .* a number each for every stage"),
        ({"ssl.share": 0.9}, r"ssl\.share .* 0\.75"),
        ({"ssl.weights": (1.0, 1.0)}, r"ssl\.weights .* three numbers"),
        ({"ssl.weights": (1.0, -1.0, 1.0)}, r"ssl\.weights .* not be negative"),
        ({"ssl.cutout": "circles"}, r"ssl\.cutout .* share, paper"),
        ({"ssl.heads": "mean"}, r"ssl\.heads .* pooled, tokens"),
        ({"ssl.decoder": "linear"}, r"ssl\.decoder .* vae, deconv"),
        ({"ssl.temperature": 0.0}, r"ssl\.temperature .* greater than 0"),
        ({"best": "rotation_accuracy"}, r"best .* smallest"),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(changes, hint):
    config = base()
    config.update_from_flattened_dict({"steps": 1, "objective": "ssl", "encoder": "swin", "data.crop": (96, 96, 96), "data.batch": 2})
    check(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=hint):
        check(config)


def test_crops_need_be_equal_in_the_plane_of_turns_only():
    config = base()
    config.update_from_flattened_dict({"steps": 1, "objective": "ssl", "encoder": "swin", "data.batch": 2, "data.crop": SIZE})
    check(config)
