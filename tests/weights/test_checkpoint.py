"""Checkpoints: bit-equal, kept as promised, never trusted when damaged, readable in parts and on another mesh."""

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from brainseg_jax.core.errors import InputError
from brainseg_jax.parallel.sharding import make_mesh, replicated
from brainseg_jax.training.step import TrainState
from brainseg_jax.weights import checkpoint
from brainseg_jax.weights.checkpoint import Checkpoints, card, load, verify, write

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


@pytest.mark.parametrize("seal", [b"{}", b"[]", b"7", b'{"state/x": ', b"\xff", b"", b'{"state/_METADATA": "00"}'])
def test_a_seal_that_seals_nothing_is_damaged(tmp_path, seal):
    fill(tmp_path, {1: 0.1, 2: 0.5})
    (tmp_path / "2" / "checksums.json").write_bytes(seal)
    restored, said = restore(tmp_path)
    equal(restored, state(1))
    assert len(said) == 1 and "checkpoint 2 is passed over" in said[0]


HARM = {
    "flipped": flip,
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "truncated": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
}


def test_harm_to_any_file_is_noticed(tmp_path):
    fill(tmp_path, {1: 0.1})
    files = [file for file in (tmp_path / "1").rglob("*") if file.is_file() and file.name != "checksums.json"]
    for file in files:
        whole = file.read_bytes()
        for harm in HARM.values():
            harm(file)
            assert whole == b"" or str(file) in verify(tmp_path / "1")
            file.write_bytes(whole)
    assert len(files) > 5 and verify(tmp_path / "1") == ""


@pytest.mark.parametrize(("harmed", "used"), [("2", 1), ("1", 2)], ids=["the newest", "the best"])
@pytest.mark.parametrize("name", ["metrics/metrics", "_CHECKPOINT_METADATA"])
@pytest.mark.parametrize("harm", ["flipped", "zeroed", "truncated"])
def test_what_orbax_reads_first_is_verified_before(tmp_path, harm, name, harmed, used):
    fill(tmp_path, {1: 0.1, 2: 0.5})
    HARM[harm](tmp_path / harmed / name)
    restored, said = restore(tmp_path)
    equal(restored, state(used))
    assert len(said) == 1 and f"{name} is damaged" in said[0] and not (tmp_path / harmed).exists()


def test_a_pipe_in_place_of_the_seal_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "checksums.json")
    assert verify(tmp_path) == f"{tmp_path}/checksums.json is damaged"


def test_a_file_that_nobody_sealed_is_not_read(tmp_path):
    fill(tmp_path, {1: 0.1})
    (tmp_path / "1" / "notes.txt").write_text("mine, and read by nobody")
    (tmp_path / "1" / ".hidden").touch()
    assert verify(tmp_path / "1") == ""
    (tmp_path / "1" / "state" / "other").touch()
    assert "other is not in checksums.json" in verify(tmp_path / "1")


@pytest.mark.parametrize("harm", ["flipped", "unsealed"])
def test_all_damaged_is_refused_and_kept(tmp_path, harm):
    fill(tmp_path, {1: 0.1, 2: 0.5})
    for step in "12":
        if harm == "flipped":
            flip(largest_file(tmp_path / step))
        else:
            (tmp_path / step / "checksums.json").unlink()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=r"no checkpoint is whole \(.*/2/.*/1/.*another --workdir or delete this folder"):
        restore(tmp_path)
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_a_first_save_that_was_killed_before_its_seal_is_begun_anew(tmp_path):
    fill(tmp_path, {1: 0.1})
    (tmp_path / "1" / "checksums.json").unlink()
    (tmp_path / ".saving").write_text("1")
    assert restore(tmp_path) == (None, []) and list(tmp_path.iterdir()) == []


def test_a_file_where_a_checkpoint_belongs_is_named(tmp_path):
    fill(tmp_path, {1: 0.1})
    (tmp_path / "40").touch()
    with pytest.raises(InputError, match=r"/40: is no checkpoint.*move it away"):
        restore(tmp_path)
    (tmp_path / "40").rename(tmp_path / "40.txt")
    equal(restore(tmp_path)[0], state(1))
    shutil.copytree(tmp_path / "1", tmp_path / "01")
    with pytest.raises(InputError, match=r"/01: is no checkpoint"):
        restore(tmp_path)


@contextmanager
def files_of_at_most(size):
    """As on a disk that is full: the system takes no longer files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, caplog):
    fill(tmp_path, {1: 0.1})
    refused = pytest.raises(InputError, match=r"no checkpoint can be written \(File too large\); make room")
    with refused as refusal, files_of_at_most(200), Checkpoints(tmp_path, "loss") as checkpoints:
        checkpoints.save(2, state(2), CARD, {"loss": 0.5})
    assert "\n" not in str(refusal.value) and not [said for said in caplog.records if said.levelname == "ERROR"]
    assert [p.name for p in tmp_path.iterdir()] == ["1"] and verify(tmp_path / "1") == ""
    fill(tmp_path, {2: 0.5})
    equal(restore(tmp_path)[0], state(2))


def test_what_ended_a_run_is_raised_and_not_what_followed(tmp_path):
    with pytest.raises(RuntimeError, match="first"), files_of_at_most(200), Checkpoints(tmp_path, "loss") as checkpoints:
        checkpoints.save(2, state(2), CARD, {"loss": 0.5})
        raise RuntimeError("first")


def test_a_converted_checkpoint_for_which_there_is_no_room_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"/new: no checkpoint can be written \(File too large\)"), files_of_at_most(200):
        write(tmp_path / "new", {"kernel": np.zeros(1000)}, CARD)
    assert list(tmp_path.iterdir()) == []


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
    from brainseg_jax.weights import checkpoint

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
    flip(tmp_path / "1" / "_CHECKPOINT_METADATA")
    with pytest.raises(InputError, match=r"cannot be trusted, .*_CHECKPOINT_METADATA is damaged"):
        card(tmp_path / "1")
    fill(tmp_path / "other", {1: 0.1})
    flip(largest_file(tmp_path / "other" / "1"))
    with pytest.raises(InputError, match="cannot be trusted"):
        load(tmp_path / "other" / "1")


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
@pytest.mark.parametrize("left", [True, False])
def test_what_a_training_removes_while_it_is_read_is_one_line(tmp_path, monkeypatch, caplog, left):
    """A training keeps its best and its latest checkpoints; half of an older one may be left at the moment."""
    fill(tmp_path, {1: 0.1})

    def removed(*_, **__):
        shutil.rmtree(tmp_path / "1" / "state" if left else tmp_path / "1")
        absl = logging.getLogger("absl")  # as Orbax does where a file is gone that its folder had a moment ago
        absl.handle(absl.makeRecord("absl", logging.WARNING, "orbax/handler.py", 1, "Failed to get metadata", (), None))
        raise ValueError("Failed to interpret path")

    monkeypatch.setattr(checkpoint.ocp, "load", removed)
    with pytest.raises(InputError, match="was removed while it was read"):
        load(tmp_path / "1")
    assert not caplog.records


def test_what_orbax_cannot_read_of_a_whole_checkpoint_is_no_users_error(tmp_path, monkeypatch):
    fill(tmp_path, {1: 0.1})

    def fails(*_, **__):
        raise ValueError("Failed to interpret path")

    monkeypatch.setattr(checkpoint.ocp, "load", fails)
    with pytest.raises(ValueError, match="Failed to interpret"):
        load(tmp_path / "1")


def test_what_eight_devices_saved_one_device_loads(tmp_path):
    """A laptop reads the encoder that a cluster trained."""
    whole = make_mesh(1, 8, jax.devices())
    cut = NamedSharding(whole, PartitionSpec("fsdp"))
    saved = jax.tree.map(lambda a: jax.device_put(a, cut if a.shape == (16, 8) else replicated(whole)), state(1))
    with Checkpoints(tmp_path, "loss") as checkpoints:
        checkpoints.save(1, saved, CARD, {"loss": 0.1})
    script = (
        "import sys, numpy as np; from pathlib import Path; from brainseg_jax.weights.checkpoint import load; "
        "np.savez(sys.argv[2], **load(Path(sys.argv[1]), 'params/encoder')[0])"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(tmp_path / "1"), str(tmp_path / "encoder.npz")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    equal(dict(np.load(tmp_path / "encoder.npz")), jax.device_get(saved.params["encoder"]))


def test_the_card_and_seal_are_plain_json(tmp_path):
    fill(tmp_path, {1: 0.1})
    seal = json.loads((tmp_path / "1" / "checksums.json").read_text())
    files = {str(p.relative_to(tmp_path / "1")) for p in (tmp_path / "1").rglob("*") if p.is_file()}
    assert set(seal) == files - {"checksums.json"} and all(len(digest) == 64 for digest in seal.values())
