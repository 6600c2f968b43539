"""The probe's parts by hand, and its answer: an encoder that shows the classes is told from one that does not."""

from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from brainseg_jax.data.manifest import read_manifest, write_manifest
from brainseg_jax.evaluation import linear_probe as probing
from brainseg_jax.evaluation.linear_probe import anywhere, drawn, fit, interpolate, judge, surroundings


def test_interpolation_is_scipys_between_the_centres_of_cells(rng):
    """A map of 4 × 3 × 2 cells over an image of 16 × 12 × 8 voxels: voxel i lies at (i + ½) / 4 − ½."""
    grid = rng.normal(size=(4, 3, 2, 2)).astype(np.float32)
    points = np.stack(np.indices((16, 12, 8)), axis=-1).reshape(-1, 3).astype(float)
    found = interpolate(grid, points, (16, 12, 8))
    for f in range(2):
        expected = ndimage.map_coordinates(grid[..., f], (points.T + 0.5) / 4 - 0.5, order=1, mode="nearest")
        np.testing.assert_allclose(found[:, f], expected, atol=1e-5)


def test_interpolation_of_a_single_cell_is_constant():
    assert (interpolate(np.full((1, 1, 1, 1), 3, np.float32), np.array([[0.0, 5.0, 9.0]]), (10, 10, 10)) == 3).all()


def test_surroundings_hold_the_voxel_its_neighbours_and_its_place(rng):
    image = rng.uniform(size=(5, 5, 5)).astype(np.float32)
    (row,) = surroundings(image[..., None], np.array([[2, 1, 4]]))
    assert row[13] == image[2, 1, 4]  # the middle of 27
    assert row[0] == image[1, 0, 3] and row[1] == image[1, 0, 4] and row[2] == image[1, 0, 4]  # the edge is repeated
    np.testing.assert_allclose(row[27:30], np.array([2, 1, 4]) / 5 - 0.5)


def test_the_classifier_finds_a_linear_rule_whatever_the_balance(rng):
    features = rng.normal(size=(4000, 3)).astype(np.float32)
    classes = (features[:, 0] + 0.5 * features[:, 1] > 1.5).astype(int)  # one in twelve
    recall, _ = judge(fit(features, classes, 2)(features), classes, 2)
    assert recall[1] > 0.99 and recall[0] > 0.8
    np.testing.assert_array_equal(fit(features, classes, 3)(features) < 2, True)  # a class that is not there is not found


def test_recall_and_dice_by_hand():
    recall, dice = judge(np.array([0, 0, 1, 1, 1, 0]), np.array([0, 0, 0, 1, 1, 1]), 3)
    np.testing.assert_allclose(recall, [2 / 3, 2 / 3, np.nan])
    np.testing.assert_allclose(dice, [2 / 3, 2 / 3, np.nan])


def test_voxels_are_drawn_of_each_class_or_anywhere(rng):
    classes = np.zeros((30, 30, 30), int)
    classes[0, 0, :5] = 1
    points = drawn(classes, 2, rng)
    assert np.bincount(classes[tuple(points.T)]).tolist() == [1000, 5]
    assert len(np.unique(anywhere(classes, rng), axis=0)) == 20_000


class Texture(nn.Module):
    """An encoder that sees how rough each cell of 4³ voxels is where its only parameter is 1, and nothing at all where that is 0."""

    @nn.compact
    def __call__(self, image):
        seen = self.param("seen", nn.initializers.zeros, ())
        b, x, y, z, c = image.shape
        cells = (image - 0.5).reshape(b, x // 4, 4, y // 4, 4, z // 4, 4, c)
        return (seen * jnp.std(cells, axis=(2, 4, 6)),)


@pytest.mark.parametrize("learned", [True, False])
def test_an_encoder_that_knows_is_told_from_one_that_does_not(rng, small, monkeypatch, learned):
    """Two tissues alike in brightness, one rough and one smooth, in blocks: no voxel, neighbour or place tells them apart linearly."""
    config = small(**{"data.crop": (48, 48, 48)})

    def volume(_):
        rough = np.kron(rng.integers(0, 2, (4, 4, 4)), np.ones((12, 12, 12), int))
        image = 0.5 + np.where(rough, 0.2, 0.02) * rng.choice([-1, 1], rough.shape)
        return {"image": (255 * image[..., None]).astype(np.uint8), "label": rough.astype(np.uint8)}

    people = SimpleNamespace(
        train=[SimpleNamespace(file=i) for i in range(3)], val=[SimpleNamespace(file=i) for i in range(2)], manifest=""
    )
    params = {"seen": np.float32(learned)}
    for name, result in {"load": (params, {}), "of_card": config, "read_manifest": []}.items():
        monkeypatch.setattr(probing, name, lambda *_, result=result: result)
    monkeypatch.setattr(probing.dataset, "prepare", lambda *_, **__: people)
    monkeypatch.setattr(probing.cache, "load", volume)
    monkeypatch.setattr(probing.encoders, "encoder", lambda _: Texture())
    rows, _ = probing.probe(Path("checkpoint"), "", "brain", 3, 2)
    without, untrained, trained = (dice[1] for _, dice in rows.values())
    assert max(without, untrained) < 0.65
    assert trained > 0.9 if learned else trained < 0.65


@pytest.mark.slow
def test_it_reads_a_checkpoint(small, masked, heads, tmp_path, capsys):
    """Made-up heads, bright inside: without an encoder all is known, and three rows are told apart. Labels only are left out."""
    from brainseg_jax.config.resolve import with_sources
    from brainseg_jax.evaluation.linear_probe import probe
    from brainseg_jax.training.loop import train

    config = small(**{"data.manifest": str(masked), "data.cache": str(masked.parent), "steps": 2})
    train(config, with_sources(config, set(), "test.py"), tmp_path / "run")
    alone = [row._replace(subject=f"{row.subject}_labels") for row in read_manifest(heads) if row.labels_only]
    write_manifest(tmp_path / "people.tsv", [*read_manifest(masked), *alone])
    rows, structures = probe(tmp_path / "run" / "checkpoints" / "2", str(tmp_path / "people.tsv"), "brain", 2, 1)
    assert "label maps without an image, which are left out: 2\n" in capsys.readouterr().out
    assert structures == ("Brain",) and list(rows) == ["without an encoder", "encoder, untrained", "encoder, of the checkpoint"]
    assert all(dice[1] > 0.9 for _, dice in rows.values())
    assert rows["encoder, untrained"][0].tolist() != rows["encoder, of the checkpoint"][0].tolist()
