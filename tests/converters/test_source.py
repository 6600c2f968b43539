"""Which of the tensors in a file are the weights: what wrapped them, copies of them, and what is none."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from brainseg_jax.core.errors import InputError
from converters import source, torchfile

RAW, MEAN = {"a.weight": np.zeros((2, 2), np.float32)}, {"a.weight": np.ones((2, 2), np.float32), "n": np.ones(())}
OPTIMIZER = {"state": {0: {"exp_avg": np.ones((2, 2), np.float32)}}, "param_groups": [{"lr": 0.1}]}


@pytest.fixture
def read(monkeypatch, tmp_path):
    """`read(content, wanted)`: the number that the chosen weights are full of, and the rest of what was read."""

    def read(content, wanted=""):
        monkeypatch.setattr(torchfile, "read", lambda path: content)
        found = source.read(tmp_path / "w.pt", wanted)
        return SimpleNamespace(value=found.tensors["a.weight"][0, 0], keys=list(found.tensors), name=found.name, choice=found.choice)

    return read


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (RAW, ""),
        ({"state_dict": RAW, "epoch": 3, "optimizer": OPTIMIZER, "loss": np.ones(3)}, "state_dict"),
        ({"module.a.weight": RAW["a.weight"], "epoch": 3}, ""),
        ({"network_weights": RAW, "optimizer_state": OPTIMIZER, "grad_scaler_state": None, "logging": {"ema": [1.0]}}, "network_weights"),
    ],
)
def test_one_set_of_weights_needs_no_word(read, content, name):
    found = read(content)
    assert (found.value, found.name, found.choice) == (0, name, "") and "a.weight" in found.keys


@pytest.mark.parametrize(
    ("content", "raw", "mean"),
    [
        ({"state_dict": RAW, "state_dict_ema": MEAN}, "state_dict", "state_dict_ema"),
        ({"ema": MEAN, "model": RAW}, "model", "ema"),
        ({"model": RAW, "model_ema": {"module": MEAN, "decay": 0.99}}, "model", "model_ema.module"),
        ({"model_state_dict": RAW, "ema_state_dict": MEAN, "optimizer": OPTIMIZER}, "model_state_dict", "ema_state_dict"),
        ({"state_dict": {"model.a.weight": RAW["a.weight"], "model_ema.a.weight": MEAN["a.weight"]}}, "state_dict", "state_dict.model_ema"),
        ({**RAW, "ema": {"shadow": MEAN}}, "", "ema.shadow"),
    ],
)
def test_of_raw_and_averaged_weights_the_choice_is_said_and_can_be_made(read, content, raw, mean):
    found = read(content)
    assert (found.value, found.name) == (0, raw) and found.choice.endswith(f"; --weights takes {mean} instead")
    found = read(content, mean)
    assert (found.value, found.name) == (1, mean) and found.choice.startswith(f"weights: {mean}")


@pytest.mark.parametrize(
    "content",
    [
        {"teacher": MEAN, "student": RAW},
        {"teacher.a.weight": MEAN["a.weight"], "student.a.weight": RAW["a.weight"]},
        {"online_model.a.weight": RAW["a.weight"], "ema_model.a.weight": MEAN["a.weight"]},
    ],
)
def test_where_none_is_the_usual_one_it_is_asked_for(read, content):
    names = list(source.sets(content))
    with pytest.raises(InputError, match=f"w.pt: holds 2 sets of weights; say which with --weights: {', '.join(names)}"):
        read(content)
    assert {read(content, name).value for name in names} == {0, 1}


def test_averaged_weights_alone_are_taken_and_said(read):
    found = read({"ema": MEAN, "step": 3})
    assert (found.value, found.choice) == (1, "weights: ema")


def test_another_name_and_no_weights_are_refused(read):
    with pytest.raises(InputError, match=r"--weights emma: .*w.pt has none of this name \(did you mean 'ema'\?\); it has model, ema"):
        read({"model": RAW, "ema": MEAN}, "emma")
    with pytest.raises(InputError, match="holds no weights"):
        read({"optimizer": OPTIMIZER, "epoch": 3})


@pytest.mark.parametrize("key", ["encoder.stages.0.0.convs.0.conv.weight", "conv_blocks_context.0.blocks.0.conv.weight"])
def test_nnunets_network_is_known_by_name(key):
    with pytest.raises(InputError, match="holds a U-Net of nnU-Net's, whose weights cannot be converted yet; predict with nnU-Net itself"):
        source.detect({key: np.zeros((2, 2))})


def test_a_pipe_is_no_file_of_weights(tmp_path):
    os.mkfifo(tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: is a pipe or device and no file; give a file"):
        source.read(tmp_path / "w.pt")
