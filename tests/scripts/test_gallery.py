"""Pictures of made scans: each change alone, planes the right way up, and files that are small."""

import sys
from pathlib import Path

import numpy as np
import pytest

from brainseg_jax.config.checks import check
from brainseg_jax.config.keys import flat
from brainseg_jax.data.labels import lookup, read_table

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import gallery

CHANCES = ("chance", "sides", "others")


@pytest.mark.parametrize("name", gallery.PARTS)
def test_each_change_is_alone_beside_the_scan_without_it(name):
    config = gallery.of_file(f"{gallery.CONFIG}:thirtythree,any")
    before = flat(config)
    _, without, changes = gallery.PARTS[name]
    one, other = (gallery.changed(config, keys) for keys in (without, without | changes | {"real": False}))
    check(one)
    check(other)
    assert flat(config) == before
    assert not any(value for key, value in flat(one).items() if key.startswith(("synth.", "augment.")) and key.endswith(CHANCES))
    differing = {key for key, value in flat(other).items() if flat(one)[key] != value}
    assert differing == set(changes) | ({"synth.share"} if "real" in without else set())
    assert other.synth.share == 1 and one.synth.share == ("real" not in without)


def test_scans_are_made_of_a_volumes_labels_or_are_its_image(rng):
    config = gallery.changed(gallery.of_file(f"{gallery.CONFIG}:thirtythree,any"), {"synth.spread": 0.0})
    config.data.size = config.data.crop = (8, 8, 8)
    head = read_table("head")
    labels = lookup(np.kron(rng.choice([0, 2, 41, 604], (2, 2, 2)), np.ones((4, 4, 4), int)), head, head)
    volume = {"image": rng.integers(0, 256, (8, 8, 8, 1)).astype(np.uint8), "label": labels}
    made = gallery.made_by(config, 0)
    first, second = made(0, volume), made(1, volume)
    assert first.shape == (8, 8, 8) and len(np.unique(first)) <= 4 and not np.array_equal(first, second)
    np.testing.assert_array_equal(made(0, volume), first)
    config.synth.share = 0.0
    np.testing.assert_allclose(gallery.made_by(config, 0)(0, volume), volume["image"][..., 0] / 255, atol=1e-6)


def test_the_front_and_the_top_are_up():
    front, top = np.zeros((2, 5, 5, 5))
    front[:, 4], top[..., 4] = 1, 1
    assert gallery.plane(front, 2)[0].all() and gallery.plane(top, 0)[0].all() and gallery.plane(top, 1)[0].all()
    assert gallery.plane(front, 0)[:, 4].all()


def test_a_picture_is_grey_and_what_was_drawn(tmp_path, rng, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    image = rng.random((30, 40))
    gallery.save(tmp_path / "out" / "a.png", image)
    found = pyplot.imread(tmp_path / "out" / "a.png")
    assert found.shape[:2] == (30, 40) and (found[..., 0] == found[..., 2]).all()
    np.testing.assert_allclose(found[..., 0], image, atol=0.6 / (gallery.LEVELS - 1))
    assert "a.png: written, " in capsys.readouterr().out
