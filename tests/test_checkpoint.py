"""Checkpoints: bit-equal, kept as promised, never trusted when damaged, readable in parts and on another mesh."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from brainseg_jax.checkpoint import Checkpoints, load, verify
from brainseg_jax.errors import InputError
from brainseg_jax.sharding import make_mesh, replicated
from brainseg_jax.step import TrainState

CARD = {"config": {"seed": {"value": 0, "from": "default"}}, "subjects": ["a", "b"]}


def state(step, device=None):
    """A state with the types a run has: float32 and bfloat16 leaves, counters, and an optimizer's nested tuples."""
    rng = np.random.default_rng(step)
    params = {
        "encoder": {"kernel": rng.normal(size=(16, 8)).astype(np.float32), "bias": rng.normal(size=8).astype(np.float32)},
        "head": {"kernel": np.asarray(rng.normal(size=(8, 2)), jnp.bfloat16)},
    }
    whole = TrainState(np.int32(step), params, ((), (np.int32(step), jax.tree.map(lambda a: a * 2, params))))
    return jax.tree.map(lambda a: jax.device_put(a, device or jax.devices()[0]), whole)


def like(of):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), of)


def equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), a, b)


def fill(folder, losses):
    """Saves a checkpoint a step; `losses` maps a step to its metric or to None."""
    with Checkpoints(folder, "loss") as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, state(step), CARD, None if loss is None else {"loss": loss})


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def restore(folder, of=None):
    said = []
    with Checkpoints(folder, "loss") as checkpoints:
        return checkpoints.restore_latest(like(of or state(0)), said.append), said


def test_what_is_restored_is_bit_equal(tmp_path):
    fill(tmp_path, {3: 1.0})
    restored, said = restore(tmp_path)
    assert isinstance(restored, TrainState) and not said
    equal(restored, state(3))


def test_no_checkpoint_is_no_state(tmp_path):
    assert restore(tmp_path) == (None, [])


def test_the_best_and_the_latest_two_are_kept(tmp_path):
    with Checkpoints(tmp_path, "loss") as checkpoints:
        for step, loss in {1: 0.9, 2: 0.1, 3: 0.5, 4: None, 5: 0.6}.items():
            checkpoints.save(step, state(step), CARD, None if loss is None else {"loss": loss})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
    assert {p.name for p in tmp_path.iterdir()} == {"2", "4", "5"}


def test_a_step_saved_twice_is_saved_once(tmp_path):
    fill(tmp_path, {2: 0.5})
    before = (tmp_path / "2" / "checksums.json").read_bytes()
    fill(tmp_path, {2: 0.5})
    assert (tmp_path / "2" / "checksums.json").read_bytes() == before


def test_the_state_may_be_given_away_while_it_is_saved(tmp_path):
    with Checkpoints(tmp_path, "loss") as checkpoints:
        given = state(1)
        checkpoints.save(1, given, CARD, {"loss": 1.0})
        jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)(given)
    equal(restore(tmp_path)[0], state(1))


def test_one_flipped_bit_is_noticed_and_the_older_checkpoint_used(tmp_path):
    fill(tmp_path, {1: 0.1, 2: 0.5})
    flip(largest_file(tmp_path / "2"))
    restored, said = restore(tmp_path)
    equal(restored, state(1))
    assert len(said) == 1 and "2" in said[0] and "is damaged" in said[0]
    assert not (tmp_path / "2").exists()


@pytest.mark.parametrize("harm", ["flip", "missing", "unsealed"])
def test_verify_says_what_is_wrong(tmp_path, harm):
    fill(tmp_path, {1: 0.1})
    assert verify(tmp_path / "1") == ""
    file = largest_file(tmp_path / "1")
    expected = {"flip": "is damaged", "missing": "is missing", "unsealed": "checksums.json is missing"}[harm]
    if harm == "flip":
        flip(file)
    else:
        (file if harm == "missing" else tmp_path / "1" / "checksums.json").unlink()
    assert expected in verify(tmp_path / "1")


def test_a_checkpoint_that_was_never_sealed_is_cleared_away_and_the_older_one_used(tmp_path):
    """The run was killed between the last byte of the save and its seal."""
    fill(tmp_path, {1: 0.1, 2: 0.5})
    (tmp_path / "2" / "checksums.json").unlink()
    equal(restore(tmp_path)[0], state(1))
    assert {p.name for p in tmp_path.iterdir()} == {"1"}


def test_a_truncated_seal_is_no_crash(tmp_path):
    fill(tmp_path, {1: 0.1})
    (tmp_path / "1" / "checksums.json").write_text('{"state/x": ')
    assert verify(tmp_path / "1")


def test_all_damaged_is_refused(tmp_path):
    fill(tmp_path, {1: 0.1, 2: 0.5})
    for step in "12":
        flip(largest_file(tmp_path / step))
    with pytest.raises(InputError, match="no checkpoint is whole"):
        restore(tmp_path)


def test_what_a_killed_save_left_is_cleared_away(tmp_path):
    fill(tmp_path, {1: 0.1})
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp-1700000000")
    restored, _ = restore(tmp_path)
    equal(restored, state(1))
    assert {p.name for p in tmp_path.iterdir()} == {"1"}


def test_a_subtree_is_read_alone_with_the_card(tmp_path):
    fill(tmp_path, {1: 0.1})
    encoder, card = load(tmp_path / "1", "params/encoder")
    equal(encoder, jax.device_get(state(1).params["encoder"]))
    assert card == CARD and all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(encoder))
    params, _ = load(tmp_path / "1")
    equal(params, jax.device_get(state(1).params))


def test_other_parts_need_not_be_there(tmp_path, monkeypatch):
    """Only the wanted part is asked of Orbax: the rest are placeholders."""
    from brainseg_jax import checkpoint

    fill(tmp_path, {1: 0.1})
    asked = []
    real = checkpoint.ocp.load
    monkeypatch.setattr(checkpoint.ocp, "load", lambda path, abstract, **how: asked.append(abstract) or real(path, abstract, **how))
    load(tmp_path / "1", "params/encoder")
    leaves = jax.tree.leaves(asked[0], is_leaf=lambda leaf: leaf is checkpoint.ocp.PLACEHOLDER)
    assert sum(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves) == 2 and len(leaves) > 4


@pytest.mark.parametrize("subtree", ["params/decoder", "weights", "params/encoder/kernel/x"])
def test_an_unknown_subtree_is_refused(tmp_path, subtree):
    fill(tmp_path, {1: 0.1})
    with pytest.raises(InputError, match=subtree):
        load(tmp_path / "1", subtree)


def test_what_is_no_checkpoint_or_damaged_is_not_loaded(tmp_path):
    fill(tmp_path, {1: 0.1})
    with pytest.raises(InputError, match="is no checkpoint"):
        load(tmp_path)
    flip(largest_file(tmp_path / "1"))
    with pytest.raises(InputError, match="cannot be trusted"):
        load(tmp_path / "1")


def test_restores_onto_another_mesh(tmp_path):
    one, other = make_mesh(8, 1, jax.devices()), make_mesh(2, 4, jax.devices())
    with Checkpoints(tmp_path, "loss") as checkpoints:
        checkpoints.save(1, state(1, replicated(one)), CARD, {"loss": 0.1})

    def place(leaf):
        cut = NamedSharding(other, PartitionSpec("fsdp")) if leaf.shape == (16, 8) else replicated(other)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cut)

    with Checkpoints(tmp_path, "loss") as checkpoints:
        restored = checkpoints.restore_latest(jax.tree.map(place, state(1)), print)
    kernel = restored.params["encoder"]["kernel"]
    assert kernel.sharding.mesh.shape == {"data": 2, "fsdp": 4} and kernel.addressable_shards[0].data.shape == (4, 8)
    equal(jax.device_get(restored), jax.device_get(state(1)))


@pytest.mark.slow
def test_what_eight_devices_saved_one_device_loads(tmp_path):
    """A laptop reads the encoder that a cluster trained."""
    whole = make_mesh(1, 8, jax.devices())
    cut = NamedSharding(whole, PartitionSpec("fsdp"))
    saved = jax.tree.map(lambda a: jax.device_put(a, cut if a.shape == (16, 8) else replicated(whole)), state(1))
    with Checkpoints(tmp_path, "loss") as checkpoints:
        checkpoints.save(1, saved, CARD, {"loss": 0.1})
    script = (
        "import sys, numpy as np; from pathlib import Path; from brainseg_jax.checkpoint import load; "
        "np.savez(sys.argv[2], **load(Path(sys.argv[1]), 'params/encoder')[0])"
    )
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", script, str(tmp_path / "1"), str(tmp_path / "encoder.npz")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    equal(dict(np.load(tmp_path / "encoder.npz")), jax.device_get(saved.params["encoder"]))


def test_the_card_and_seal_are_plain_json(tmp_path):
    fill(tmp_path, {1: 0.1})
    seal = json.loads((tmp_path / "1" / "checksums.json").read_text())
    files = {str(p.relative_to(tmp_path / "1")) for p in (tmp_path / "1").rglob("*") if p.is_file()}
    assert set(seal) == files - {"checksums.json"} and all(len(digest) == 64 for digest in seal.values())
