"""The benchmark counts operations as its documents say."""

import importlib
import runpy
import sys
from pathlib import Path

from ml_collections import ConfigDict

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # as it is for the script itself
BENCHMARK = runpy.run_path(str(SCRIPTS / "benchmark.py"))
mae_flop = importlib.import_module("benchmarks.pretraining").mae_flop


def test_operations_of_a_step_counted_by_hand():
    encoder = ConfigDict({"patch": 2, "width": 4, "depth": 1, "hidden": 8})
    decoder = ConfigDict({"width": 2, "depth": 1})
    # 3 encoder tokens: qkv and out 2·3·4·16 = 384, mlp 2·3·4·16 = 384, attention 4·9·4 = 144; to the decoder 2·3·4·2 = 48.
    # 9 decoder tokens: qkv and out 2·9·2·8 = 288, mlp 2·9·2·16 = 576, attention 4·81·2 = 648; prediction 2·6·2·8 = 192.
    # Patch embedding 2·2·8·4 = 128, without a gradient towards the image.
    forward = 384 + 384 + 144 + 48 + 288 + 576 + 648 + 192
    assert mae_flop(8, kept=2, embedded=2, predicted=6, encoder=encoder, decoder=decoder) == 3 * forward + 2 * 128


def test_linear_layers_of_the_paper_s_forward_pass_are_61_gflop():
    # A counter that knows linear layers and convolutions only gives 61.4 for the paper's MAE, which embeds and predicts every patch.
    encoder = ConfigDict({"patch": 16, "width": 768, "depth": 12, "hidden": 3072})
    decoder = ConfigDict({"width": 512, "depth": 4})
    step = mae_flop(1000, kept=150, embedded=1000, predicted=1000, encoder=encoder, decoder=decoder)
    embedding = 2 * 1000 * 4096 * 768
    attention = 12 * 4 * 151**2 * 768 + 4 * 4 * 1001**2 * 512
    assert round(((step - 2 * embedding) / 3 + embedding - attention) / 1e9, 1) == 61.4


def test_the_command_is_shown_without_the_place_of_its_output():
    assert BENCHMARK["shown"](["x/benchmark.py", "--mode", "cache", "--out", "somewhere.md"]) == [
        "python",
        "scripts/benchmark.py",
        "--mode",
        "cache",
    ]
