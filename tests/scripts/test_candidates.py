"""Candidates: equal computing, alterations that are the same whoever is judged, and a rule that was written beforehand."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data.manifest import Row
from brainseg_jax.data.nifti import Scan
from brainseg_jax.data.nifti_write import write
from brainseg_jax.inference.predictor import Predictor

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # as it is for the script itself
candidates, shifts = importlib.import_module("candidates"), importlib.import_module("shifts")


@pytest.fixture
def head():
    """A bright box of labels 2 in a dimmer one, in air."""
    voxels, labels = np.zeros((24, 24, 24), np.float32), np.zeros((24, 24, 24), np.uint8)
    voxels[4:20, 4:20, 4:20], voxels[8:16, 8:16, 8:16], labels[8:16, 8:16, 8:16] = 400, 900, 2
    return shifts.Head(voxels, labels, np.diag([2.0, 2, 2, 1]))


@pytest.fixture
def anatomy(tmp_path):
    """A row of labels only: white matter in tissue without a name."""
    ids = np.zeros((32, 32, 32), np.int16)
    ids[4:28, 4:28, 4:28], ids[10:16, 10:22, 10:22], ids[16:22, 10:22, 10:22] = 516, 2, 41
    write(tmp_path / "ids.nii.gz", ids, np.diag([6.0, 6, 6, 1]))
    return Row("a", "", tmp_path / "ids.nii.gz", (tmp_path / "ids.nii.gz",), ("head",), "made", "test", labels_only=True)


def test_the_hours_are_filled_with_steps():
    assert candidates.steps_in(2, 2.5) == 2880
    assert candidates.steps_in(2, 1.25) == 5760
    assert candidates.steps_in(1e-9, 2.5) == 1


def test_steps_are_measured_once_by_turns_and_the_best_turn_counts(tmp_path, monkeypatch):
    asked, file = [], tmp_path / "runs" / "steps.json"
    times = {"unet": [[3.0, 2.0, 9.0], [2.5, 2.0, 2.0], [8.0, 8.0, 8.0]], "unetr": [[4.0], [5.0], [6.0]]}

    def in_process(worker, steps, folder):
        asked.append(folder.name)
        return {"seconds": times[folder.name][(len(asked) - 1) // 2]}

    monkeypatch.setattr(candidates, "in_process", in_process)
    values = {name: candidates.changes(name, []) for name in ("unet", "unetr")}
    assert candidates.measured(file, values) == candidates.measured(file, values) == {"unet": 2.0, "unetr": 4.0}
    assert asked == ["unet", "unetr"] * 3
    asked.clear()
    times["unet"] = [[1.0]] * 3
    assert candidates.measured(file, values | {"unet": candidates.changes("unet", ["data.batch=2"])}) == {"unet": 1.0, "unetr": 4.0}
    assert asked == ["unet"] * 3
    assert json.loads(file.read_text())["unet"]["values"]["data.batch"] == "2"


def test_a_key_is_given_once_and_the_last_word_is_the_users(tmp_path):
    given = ["unet.blocks=(1,1,1,1,1)", "eval_volumes=2"]
    args = argparse.Namespace(manifest=tmp_path / "people.tsv", splits=None, out=tmp_path / "runs", set=given)
    words = candidates.command("unet_wide", args, 2880, 2.5)
    keys = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert len(keys) == len(set(keys)) and "--config.data.splits" not in keys
    assert {"--config.unet.features=(16,32,64,96,128)", "--config.unet.blocks=(1,1,1,1,1)", "--config.steps=2880"} <= set(words)
    assert "--config.save_every=60" in words and f"--workdir={tmp_path / 'runs' / 'unet_wide'}" in words
    with pytest.raises(InputError, match="--set eval_volumes: give KEY=VALUE"):
        candidates.changes("unet", ["eval_volumes"])


def test_the_second_scanner_is_the_same_for_a_subject_and_leaves_labels(head):
    one, again, other = (shifts.second_scanner(head, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.voxels, again.voxels)
    assert np.abs(one.voxels - other.voxels).max() > 0.05
    assert one.labels is head.labels and one.affine is head.affine and one.voxels.shape == head.voxels.shape
    inside, around, air = head.labels > 0, head.voxels == 400, head.voxels == 0
    assert np.median(one.voxels[inside]) > np.median(one.voxels[around]) > np.median(one.voxels[air]) > 0


def test_a_made_head_is_the_same_at_every_call(anatomy):
    one, again, other = (shifts.made(anatomy, draw, None) for draw in (0, 0, 1))
    np.testing.assert_array_equal(one.voxels, again.voxels)
    assert np.abs(one.voxels - other.voxels).max() > 0.05
    np.testing.assert_array_equal(one.labels, other.labels)
    assert (one.labels[13, 16, 16], one.labels[18, 16, 16], one.voxels.shape) == (2, 41, (32, 32, 32))
    assert one.voxels.min() >= 0 and one.voxels.max() <= 1


def test_the_rule_takes_the_best_and_of_those_alike_the_fastest():
    values = {"swin_unetr": 0.800, "unet": 0.796, "unet_wide": 0.7949, "unetr": 0.7}
    assert candidates.chosen(values, dict.fromkeys(values, 1.0) | {"swin_unetr": 0.9}) == "swin_unetr"
    assert candidates.chosen(values, {"swin_unetr": 2.0, "unet": 1.0, "unet_wide": 0.5, "unetr": 0.1}) == "unet"
    assert candidates.chosen(values | {"unet_wide": 0.795}, {"swin_unetr": 2.0, "unet": 1.0, "unet_wide": 0.5, "unetr": 0.1}) == "unet_wide"


def of_run(steps, seconds=3.6, length=2000, people=("a",)):
    by = Predictor((), None, None, None, 0.5, "gaussian", ({"subjects": people},))
    return candidates.Trained(by, 1000, 2_000_000, 1e-3, steps, length, seconds)


def dice_of(value):
    return {shift: {task: [value, value + 0.02] for task in candidates.TASKS} for shift in (candidates.AS_THEY_ARE, *candidates.SHIFTED)}


def test_the_page_says_what_is_chosen_and_whether_all_is_trained():
    environment = {"machine": {"processor": "P", "cores": 2}, "packages": {"jax": "1"}, "commit": "0123456789abcdef"}
    networks = dict.fromkeys(candidates.CANDIDATES, of_run(2000))
    dice = {name: dice_of(0.8 if name == "unet" else 0.7) for name in networks}
    dice["unet"][candidates.AS_THEY_ARE] = dice_of(0.1)[candidates.AS_THEY_ARE]  # no shift, so of no weight
    seconds = dict.fromkeys(networks, 1.0)
    text = candidates.page(networks, seconds, dice, environment)
    assert "It chooses: **residual U-Net, 8 to 128 channels**" in text and "under way" not in text
    assert (
        "| residual U-Net, 8 to 128 channels | 1,000 | 3.60 | 2,000 | 2.00 | 0.110 ± 0.014 | 0.810 ± 0.014 | 0.810 ± 0.014 "
        "| 0.810 ± 0.014 | 0.810 | 1.00 | 2.0 |"
    ) in text
    text = candidates.page(
        {"unet": of_run(500), "unetr": of_run(2000)}, seconds, {name: dice[name] for name in ("unet", "unetr")}, environment
    )
    assert "no result:** still to be trained are swin_unetr, unet, unet_wide." in text and "It would choose so far" in text
    assert "| 500 of 2,000 | 0.50 |" in text


@pytest.mark.parametrize("content", ["{", "[]", '{"unet": {"values": {}}}', '{"unet": {"turns": []}}'])
def test_a_damaged_file_of_steps_is_one_line(tmp_path, content):
    (tmp_path / "steps.json").write_text(content)
    with pytest.raises(InputError, match=r"steps\.json: is damaged; remove it"):
        candidates.known_steps(tmp_path / "steps.json")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["train", "--out=o", "--hours=nan", "--manifest=x"], "--hours nan: give a number above 0"),
        (["train", "--out=o", "--manifest=gone.tsv"], "gone.tsv"),
        (["report", "--out=o", "--to=t", "--manifest=x", "--anatomies=y", "--people=0"], "--people 0: give a whole number above 0"),
        (["train", "--manifst=x"], "--manifst"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_measured(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["scripts/candidates.py", *flags])
    assert candidates.main() == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1 and not [*tmp_path.iterdir()]


def test_the_t1_prior_is_of_those_who_have_a_structure(head, monkeypatch):
    """One of two scans lacks the white matter of labels 2."""
    scans = {"one": head, "two": head._replace(labels=np.where(head.labels, 3, 0).astype(np.uint8))}
    monkeypatch.setattr(shifts, "read", lambda path: Scan(scans[path].voxels, scans[path].affine))
    monkeypatch.setattr(shifts, "read_labels", lambda path: Scan(scans[path].labels, scans[path].affine))
    rows = [Row(name, "", name, (name,), ("freesurfer",), "", "train") for name in scans]
    tissues, ids = shifts.tissues_of(shifts.read_table("head")), [0, *(s.id for s in shifts.read_table("head").structures)]
    prior = shifts.t1_prior(rows)
    means = {id: prior.means[0, tissues.of[ids.index(id)]] for id in (2, 3, 17)}
    assert means[2] == shifts.t1_prior(rows[:1]).means[0, tissues.of[ids.index(2)]] > 0.5 and means[3] > 0.5 and np.isnan(means[17])


def test_only_runs_alike_are_compared_and_nobody_judges_who_was_trained_on(anatomy, tmp_path):
    first = of_run(10)
    candidates.check_alike(tmp_path, {"unet": first, "unetr": of_run(10, 7.2, 1000)}, [anatomy])
    with pytest.raises(InputError, match="unetr: is a run of 4 h and others are of 2 h"):
        candidates.check_alike(tmp_path, {"unet": first, "unetr": of_run(10, 7.2)}, [anatomy])
    with pytest.raises(InputError, match="trained on other subjects"):
        candidates.check_alike(tmp_path, {"unet": first, "unetr": of_run(10, people=("b",))}, [anatomy])
    with pytest.raises(InputError, match="unet: was trained on a, who is to judge it"):
        candidates.check_alike(tmp_path, {"unet": of_run(10, people=(anatomy.hashed,))}, [anatomy])
