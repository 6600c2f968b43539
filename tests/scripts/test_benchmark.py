"""The benchmark's tables say what was measured."""

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # as it is for the script itself
BENCHMARK = runpy.run_path(str(SCRIPTS / "benchmark.py"))
presets = importlib.import_module("benchmarks.presets")


def turn(seconds, memory, **more):
    return {"seconds": seconds, "memory": memory * 2**30, "devices": 1, "matmul": 100e9, "loss": 0.5} | more


def ours(seconds, memory, checksum="abc"):
    facts = {"platform": "cpu", "dtype": "float32", "flop": 40e9, "lower": 1.0, "compile": 2.0, "estimate": 2**30}
    return turn(seconds, memory, checksum=checksum, **facts)


def test_a_row_and_its_notes_computed_by_hand(tmp_path):
    config = presets.written(tmp_path, "configs/pretrain_vit.py:2mm", ["data.batch=2", "data.crop=[32,32,32]"], plain=True)
    turns = {"brainseg_jax": [ours([1.0, 1.0], 1), ours([3.0, 3.0], 2)], "MONAI": [turn([2.0, 2.0], 4), turn([6.0, 6.0], 4)]}
    cells = [cell.strip() for cell in presets.row("p", "MONAI", turns, config).split("|")[1:-1]]
    # Median of 2, 2, 6, 6 is 4 s for 2 crops; 40 GFLOP in 4 s of 100 GFLOP/s are 10 %.
    assert cells[:3] == ["p, batch 2", "MONAI", "4.000"]
    assert cells[5:] == ["0.500", f"{0.5 * 32**3 / 1e6:.2f}", "10 % of 100 GFLOP/s", "4.00"]
    notes = presets.about("p", turns)
    assert "all turns ended with the same weights" in notes[0]
    assert "2.00 times as long (turn by turn 2.00, 2.00); ours takes 0.50 of its memory" in notes[1]


def test_turns_that_compute_differently_are_told():
    turns = {"brainseg_jax": [ours([1.0, 1.0], 1), ours([1.0, 1.0], 1, checksum="abd")]}
    assert "turns ended differently: ['abc', 'abd']" in presets.about("p", turns)[0]


def test_the_peer_is_compiled_on_a_gpu_only():
    assert {worker for worker, _ in presets.rivals("cpu").values()} == {"monai preset"}
    assert {worker for worker, _ in presets.rivals("gpu").values()} == {"monai preset", "monai compiled preset"}
    assert {worker for p in ("cpu", "gpu") for worker, _ in presets.rivals(p).values()} <= set(presets.WORKERS)


@pytest.mark.slow
def test_a_small_step_is_measured_against_its_peer(tmp_path):
    sizes = {"vit.width": 24, "vit.heads": 2, "vit.hidden": 48, "vit.depth": 2, "mae.width": 24, "mae.heads": 2, "mae.depth": 1}
    sizes |= {"data.crop": [32, 32, 32], "data.size": [32, 32, 32], "data.batch": 2}
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), "--preset", "configs/pretrain_vit.py:2mm", "--against", "monai"]
    command += ["--steps", "2", "--turns", "1", "--out", str(tmp_path / "table.md")]
    command += [word for key, value in sizes.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    subprocess.run(command, check=True, cwd=SCRIPTS.parent, capture_output=True)
    results = json.loads((tmp_path / "table.json").read_text())["results"]["configs/pretrain_vit.py:2mm"]
    assert set(results) == {"brainseg_jax", "MONAI", "MONAI, as installed"}
    assert all(turns[0]["loss"] > 0 and min(turns[0]["seconds"]) > 0 for turns in results.values())
    assert results["brainseg_jax"][0]["flop"] > 0 and len(results["brainseg_jax"][0]["checksum"]) == 12


def test_the_command_is_shown_without_the_place_of_its_output():
    assert BENCHMARK["shown"](["x/benchmark.py", "--mode", "cache", "--out", "somewhere.md"]) == [
        "python",
        "scripts/benchmark.py",
        "--mode",
        "cache",
    ]
