"""The loss of segmentation by hand, and against MONAI's: values and gradients, any number of voxels at a time."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer

from brainseg_jax.objectives import losses
from brainseg_jax.objectives.losses import dice_cross_entropy, dice_of_present_cross_entropy, log_dice_of_present_cross_entropy

torch = peer("torch")
DiceCELoss = peer("monai.losses:DiceCELoss")
DiceLoss = peer("monai.losses:DiceLoss")


def test_by_hand():
    """Two voxels, two classes, probabilities 3/4 and 1/4 for the true class and the other."""
    logits = jnp.log(jnp.array([[3.0, 1.0], [1.0, 3.0]])).reshape(1, 2, 1, 1, 2)
    labels = jnp.array([0, 1]).reshape(1, 2, 1, 1)
    # Each class: p t sums to 3/4, p² to 9/16 + 1/16, t² to 1.
    dice = 1 - 2 * 0.75 / (10 / 16 + 1)
    np.testing.assert_allclose(dice_cross_entropy(logits, labels), [dice - np.log(0.75)], rtol=1e-5)


def test_an_absent_class_counts_one_and_pulls_nothing():
    logits = jnp.zeros((1, 4, 2, 2, 3)).at[..., 2].set(-50.0)
    labels = jnp.zeros((1, 4, 2, 2), jnp.int32).at[0, 0].set(1)
    gradient = jax.grad(lambda x: dice_cross_entropy(x, labels).sum())(logits)
    assert np.abs(gradient[..., 2]).max() < 1e-12 < np.abs(gradient[..., 0]).max()


def test_the_logarithm_s_slope_does_not_vanish_where_a_class_is_not_found():
    """A class of few voxels at a probability of 1e-3: ten times the push of the others."""
    labels = jnp.zeros((1, 8, 8, 8), jnp.int32).at[0, :2, :2, :2].set(1)
    logits = jnp.zeros((1, 8, 8, 8, 2)).at[..., 1].set(np.log(1e-3))
    plain, steep = (
        float(-jax.grad(lambda x, loss=loss: loss(x, labels).sum())(logits)[0, :2, :2, :2, 1].sum())
        for loss in (dice_of_present_cross_entropy, log_dice_of_present_cross_entropy)
    )
    assert steep > 10 * plain > 0


@pytest.mark.parity
@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (2, 8, 3, 2), (3, 7, 2, 2), (1, 10, 2, 2), (1, 11, 1, 2)], ids=str)
def test_is_monais(x64, rng, close, shape):
    k = 4
    values, labels = 3 * rng.normal(size=(*shape, k)), rng.integers(0, k - 1, shape)  # the last class is absent
    theirs = torch.tensor(np.moveaxis(values, -1, 1)).requires_grad_()
    of_monai = DiceCELoss(softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
    # Given where each class is, in double precision: MONAI's own conversion of labels is in single.
    loss = of_monai(theirs, torch.tensor(np.moveaxis(np.eye(k)[labels], -1, 1)))
    loss.backward()
    ours, gradient = jax.value_and_grad(lambda x: dice_cross_entropy(x, jnp.asarray(labels, jnp.int32)).mean())(jnp.asarray(values))
    close((ours, gradient), (loss.item(), np.moveaxis(theirs.grad.numpy(), 1, -1)), "float64")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("mine", "of_dice"),
    [(dice_of_present_cross_entropy, lambda loss: loss), (log_dice_of_present_cross_entropy, lambda loss: -torch.log(1 - loss + 1e-3))],
)
def test_of_present_classes_is_the_mean_of_monais_dice_over_them(x64, rng, close, mine, of_dice):
    """Each sample has classes of its own; gradients by PyTorch."""
    labels = np.stack([rng.integers(0, 3, (6, 4, 3)), rng.choice([1, 4], (6, 4, 3))])
    values, k = 3 * rng.normal(size=(*labels.shape, 5)), 5
    theirs, where = torch.tensor(np.moveaxis(values, -1, 1)).requires_grad_(), torch.tensor(np.moveaxis(np.eye(k)[labels], -1, 1))
    each = DiceLoss(softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6, reduction="none")(theirs, where)
    each = of_dice(each.reshape(2, k))
    dice = torch.stack([each[0, [0, 1, 2]].mean(), each[1, [1, 4]].mean()])
    loss = dice + torch.nn.functional.cross_entropy(theirs, where, reduction="none").mean((1, 2, 3))
    (loss * torch.tensor([1.0, 2.0])).sum().backward()
    weighted = lambda x: mine(x, jnp.asarray(labels, jnp.int32)) @ jnp.array([1.0, 2.0])  # noqa: E731
    ours = mine(jnp.asarray(values), jnp.asarray(labels, jnp.int32))
    close((ours, jax.grad(weighted)(jnp.asarray(values))), (loss.detach().numpy(), np.moveaxis(theirs.grad.numpy(), 1, -1)), "float64")


def test_bfloat16_logits_are_taken_in_single_precision(rng):
    values = jnp.asarray(rng.normal(size=(1, 8, 4, 4, 3)), jnp.bfloat16)
    labels = jnp.asarray(rng.integers(0, 3, (1, 8, 4, 4)), jnp.int32)
    loss, gradient = jax.value_and_grad(lambda x: dice_cross_entropy(x, labels).sum())(values)
    exact = dice_cross_entropy(values.astype(jnp.float32), labels).sum()
    assert loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(loss, exact, rtol=1e-6)


LOSSES = (dice_cross_entropy, dice_of_present_cross_entropy, log_dice_of_present_cross_entropy)


def through(rng, dtype, shape=(2, 6, 4, 3), features=5, classes=4):
    """Features, labels of which each sample lacks another class, and a head."""
    labels = np.stack([rng.choice([0, 1, 2], shape[1:]), rng.choice([0, 2, 3], shape[1:])])
    head = {"kernel": jnp.asarray(rng.normal(size=(features, classes)), dtype), "bias": jnp.asarray(rng.normal(size=classes), dtype)}
    return jnp.asarray(rng.normal(size=(*shape, features)), dtype), jnp.asarray(labels, jnp.int32), head


@pytest.mark.optimised
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("cached", [1, 40, 10**6], ids="{} logits at a time".format)
def test_through_the_head_it_is_the_loss_of_the_logits(x64, rng, close, monkeypatch, loss, cached):
    monkeypatch.setattr(losses, "CACHED", cached)
    features, labels, head = through(rng, jnp.float64)
    weights = jnp.array([1.0, 2.0])

    def plain(features, head):
        return loss(features @ head["kernel"] + head["bias"][None, None, None, None], labels) @ weights

    ours = jax.value_and_grad(lambda features, head: loss(features, labels, head) @ weights, (0, 1))(features, head)
    close(ours, jax.value_and_grad(plain, (0, 1))(features, head), "float64")


def test_through_the_head_no_map_of_logits_is_whole(rng):
    """Of 40 classes and 3 features nothing is larger than the features, in what a GPU runs or in what a CPU does."""
    features, labels, head = through(rng, jnp.float32, (2, 32, 24, 24), 3, 40)
    step = jax.jit(jax.value_and_grad(lambda features, head: dice_cross_entropy(features, labels, head).sum(), (0, 1)))
    for platform in ("cpu", "cuda"):
        text = step.trace(features, head).lower(lowering_platforms=(platform,)).as_text()
        sizes = [np.prod([int(n) for n in found.split("x")[:-1]]) for found in re.findall(r"tensor<((?:\d+x)+f32)>", text)]
        assert features.size == 110592 and max(sizes) < 3 * features.size


def test_labels_of_another_grid_are_refused(rng):
    """Also where the voxels are as many, and where features could be cut up otherwise. Only pytest looks at signatures' shapes."""
    unlooked = partial(losses._dice_cross_entropy, losses._equal_weights, 0.0)
    features, labels, head = through(rng, jnp.float32)
    for other in (labels[:, :3], labels.swapaxes(1, 2), labels[:1]):
        with pytest.raises(ValueError, match="not on one grid"):
            unlooked(features, other, head)
        with pytest.raises(ValueError, match="not on one grid"):
            unlooked(features, other, None)


def test_through_a_head_of_bfloat16_sums_are_in_single_precision(rng):
    features, labels, head = through(rng, jnp.bfloat16)
    value, (d_features, d_head) = jax.value_and_grad(lambda f, h: dice_cross_entropy(f, labels, h).sum(), (0, 1))(features, head)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), head)
    exact = dice_cross_entropy(features.astype(jnp.float32), labels, wide).sum()
    assert value.dtype == jnp.float32 and d_features.dtype == d_head["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(value, exact, rtol=1e-5)
