"""What earlier versions wrote stays of use: checkpoints and network files load and give the same labels, runs are gone on with.

tests/frozen/VERSION was made by that version with `python tests/frozen/make.py VERSION`.
"""

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from brainseg_jax import load
from brainseg_jax.config import resolve
from brainseg_jax.config.keys import KEYS, OPTIM, base
from brainseg_jax.config.resolve import FORMAT, from_resolved, with_sources
from brainseg_jax.core.config_key import key, switch
from brainseg_jax.core.errors import InputError
from brainseg_jax.training.loop import check_same_experiment, train
from brainseg_jax.training.program import resolve_auto

FROZEN = Path(__file__).with_name("frozen")
SPEC = importlib.util.spec_from_file_location("frozen_make", FROZEN / "make.py")
MAKE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MAKE)


@pytest.fixture(params=sorted(p.name for p in FROZEN.iterdir() if (p / "people.tsv").exists()))
def frozen(request, tmp_path, monkeypatch):
    """A copy of what a version wrote, in it the working directory: its paths are relative."""
    shutil.copytree(FROZEN / request.param, tmp_path / "frozen")
    monkeypatch.chdir(tmp_path / "frozen")
    return tmp_path / "frozen"


def asked() -> tuple[ConfigDict, dict]:
    """The config of the frozen runs as this version starts it, and with its sources, as main does."""
    config = base()
    config.update_from_flattened_dict({resolve.RENAMED.get(name, name): value for name, value in MAKE.CONFIG.items()})
    resolved = with_sources(config, set(), "frozen.py")
    resolve_auto(config, True, resolved)
    return config, resolved


@pytest.mark.parametrize("name", ["network.safetensors", pytest.param("ended/checkpoints/30", marks=pytest.mark.slow)])
def test_it_gives_the_labels_that_it_gave(frozen, name):
    network, then = load(name), np.load("predicted.npz")
    now = np.argmax(network.logits(then["image"][None, ..., None] / np.float32(255))[0], axis=-1)
    sure = then["classes"] < 255  # where rounding does not decide
    assert sure.mean() > 0.99 and set(then["classes"][sure]) == {0, 1}
    np.testing.assert_array_equal(now[sure], then["classes"][sure])


def fine_tuned(folder: Path) -> tuple[ConfigDict, dict]:
    """Makes a frozen run one that began with a checkpoint, of the person "somebody", which is gone since; returns what starts it again."""
    config, resolved = asked()
    config.init.checkpoint = resolved["init.checkpoint"]["value"] = "gone"
    record = json.loads((folder / "config.json").read_text())
    record["init.checkpoint"]["value"] = "gone"
    (folder / "config.json").write_text(json.dumps(record))
    (checkpoint,) = (folder / "checkpoints").iterdir()
    card = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text())
    card["custom_metadata"]["subjects_before"] = ["somebody"]
    (checkpoint / "_CHECKPOINT_METADATA").write_text(json.dumps(card))
    seal = json.loads((checkpoint / "checksums.json").read_text())
    seal["_CHECKPOINT_METADATA"] = hashlib.sha256((checkpoint / "_CHECKPOINT_METADATA").read_bytes()).hexdigest()
    (checkpoint / "checksums.json").write_text(json.dumps(seal))
    return config, resolved


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_its_end_also_without_what_it_began_with(frozen, capsys):
    train(*fine_tuned(Path("stopped")), Path("stopped"))
    assert "going on from step 15" in capsys.readouterr().out
    card = load("stopped/checkpoints/30").card
    assert card["format"] == FORMAT and card["subjects_before"] == ["somebody"]
    was, now = (json.loads((place / "run.json").read_text()) for place in (frozen / "ended", frozen / "stopped"))
    assert [start["step"] for start in now["starts"]] == [0, 15]
    assert now["data"].items() >= was["data"].items() and len(now["data"]["scans"]["made/head0//head0.nii.gz"]) == 2


@pytest.mark.slow
def test_a_run_that_ended_says_so_also_without_what_it_began_with(frozen, capsys):
    again = fine_tuned(Path("ended"))
    train(*again, Path("ended"))
    assert "finished: 30 steps" in capsys.readouterr().out
    metrics = Path("ended/metrics.jsonl")
    last = [line for line in metrics.read_text().splitlines() if '"eval"' in line][-1]
    lines = metrics.read_text().splitlines()
    evaluated = [line for line in lines if '"eval"' in line and json.loads(line)["step"]]
    without_the_first = "".join(line + "\n" for line in lines if line != evaluated[0])
    unfinished = metrics.read_text().replace(last, last[:20])
    for harm in (lambda: metrics.write_text(without_the_first), lambda: metrics.write_text(unfinished), metrics.unlink):
        harm()
        train(*again, Path("ended"))
        out = capsys.readouterr().out
        assert "finished: 30 steps" in out and "best        unknown: ended/metrics.jsonl is missing, or has lost evaluations" in out


def test_a_key_that_came_later_makes_no_other_experiment(frozen, monkeypatch):
    _, resolved = asked()
    check_same_experiment(Path("ended"), resolved)
    old = json.loads(Path("ended/config.json").read_text())

    for keys, name in ((KEYS, "optim.nesterov"), (OPTIM.keys, "nesterov")):
        monkeypatch.setitem(keys, name, key(False, switch, "Nesterov's momentum"))
    check_same_experiment(Path("ended"), resolved | {"optim.nesterov": {"value": False, "from": "default"}})
    assert from_resolved(old).optim.nesterov is False
    with pytest.raises(InputError, match=r"holds another experiment \(optim\.nesterov: False → True\)"):
        check_same_experiment(Path("ended"), resolved | {"optim.nesterov": {"value": True, "from": "command line"}})


def test_a_key_of_another_name_is_still_read(frozen, monkeypatch):
    """Runs of 0.1.0 call the learning rate optim.peak."""
    _, resolved = asked()
    old = json.loads(Path("ended/config.json").read_text())
    check_same_experiment(Path("ended"), resolved)
    assert from_resolved(old).optim.lr == old["optim.peak"]["value"] == MAKE.CONFIG["optim.lr"]
    monkeypatch.setattr(resolve, "RENAMED", {})
    with pytest.raises(InputError, match=r"^ended/config\.json: has the key '\S+', and there is no such key.*version"):
        check_same_experiment(Path("ended"), resolved)
