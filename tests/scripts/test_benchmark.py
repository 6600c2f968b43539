"""The benchmark's tables say what was measured."""

import argparse
import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # as it is for the script itself
BENCHMARK = runpy.run_path(str(SCRIPTS / "benchmark.py"))
presets = importlib.import_module("benchmarks.presets")
profile = importlib.import_module("benchmarks.profile")


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
    assert "alone take 0.40 s" in notes[1]
    assert "2.00 times as long (turn by turn 2.00, 2.00); ours takes 0.50 of its memory" in notes[2]


def test_turns_that_compute_differently_are_told():
    turns = {"brainseg_jax": [ours([1.0, 1.0], 1), ours([1.0, 1.0], 1, checksum="abd")]}
    assert "turns ended differently: ['abc', 'abd']" in presets.about("p", turns)[0]


def test_the_peer_is_compiled_on_a_gpu_only():
    assert {worker for worker, _ in presets.rivals("cpu", "vit").values()} == {"monai preset"}
    assert {worker for worker, _ in presets.rivals("gpu", "swin").values()} == {"monai preset", "monai compiled preset"}
    assert {worker for p in ("cpu", "gpu") for worker, _ in presets.rivals(p, "resenc").values()} <= set(presets.WORKERS)


def test_a_peer_that_fails_takes_nobody_elses_figures_away(monkeypatch):
    def in_process(worker, steps, **how):
        if "compiled" in worker:
            raise SystemExit("the worker failed:\nRuntimeError: no such dtype\n")
        return ours([1.0], 1) | {"platform": "gpu"} if worker.startswith("ours") else turn([2.0], 2)

    monkeypatch.setattr(presets, "in_process", in_process)
    args = argparse.Namespace(preset=["configs/pretrain_vit.py:2mm"], set=["data.batch=1"], against="monai", turns=2, steps=1)
    text, results = presets.compute(args)
    assert "MONAI, torch.compile failed: RuntimeError: no such dtype" in text and "| MONAI | 2.000 |" in text
    assert [len(turns) for turns in results["configs/pretrain_vit.py:2mm"].values()] == [2, 2]


def test_time_is_shared_out_among_threads_and_belongs_to_the_innermost():
    # One thread: a loop from 0 to 10 with a product from 2 to 5 in it; another: a copy from 4 to 6, and a product from 12 to 13.
    event = profile.Event
    threads = [[event(0, 10, "loop"), event(2, 5, "product")], [event(4, 6, "copy"), event(12, 13, "product")]]
    shared = profile.shared_out(threads)
    assert shared == pytest.approx({"loop": 2 + 0.5 + 4, "product": 2 + 0.5 + 1, "copy": 0.5 + 0.5})
    assert sum(shared.values()) == pytest.approx(11)


HLO = """HloModule m

%inside (p: f32[2,3], q: f32[3,4]) -> f32[2,4] {
  %p = f32[2,3]{1,0} parameter(0)
  %q = f32[3,4]{1,0} parameter(1)
  ROOT %d = f32[2,4]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%turned (r: f32[2,3]) -> f32[3,2] {
  %r = f32[2,3]{1,0} parameter(0)
  ROOT %t = f32[3,2]{1,0} transpose(%r), dimensions={1,0}
}

ENTRY %main (a: f32[2,3], b: f32[3,4]) -> f32[2,4] {
  %a = f32[2,3]{1,0} parameter(0)
  %b = f32[3,4]{1,0} parameter(1)
  %moved = f32[3,2]{1,0} fusion(%a), kind=kLoop, calls=%turned
  %sum = f32[2,3]{1,0} add(%a, %a)
  ROOT %out = f32[2,4] fusion(%a, %b), kind=kCustom, calls=%inside, metadata={op_name="jvp(MAE)/encoder/while/body/mlp/dot_general"}
}
"""


def test_kinds_and_places_are_read_off_the_program():
    computations, entry = profile.parse(HLO)
    kinds = {name: profile.kind(computations, line) for name, line in computations[entry].items()}
    assert (kinds["out"], kinds["moved"], kinds["sum"]) == ("products", "moving", "elements")
    assert profile.place(computations[entry]["out"]) == "MAE/encoder/mlp/dot_general"


@pytest.mark.parity
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


@pytest.mark.parametrize("out", [["--out", "somewhere.md"], ["--out=somewhere.md"]])
def test_the_command_is_shown_without_the_place_of_its_output(out):
    shown = BENCHMARK["shown"](["x/benchmark.py", "--mode", "cache", *out, "--turns", "2"])
    assert shown == ["python", "scripts/benchmark.py", "--mode", "cache", "--turns", "2"]


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ("--preset nofile.py", "no such config"),
        ("--preset README.md", "no such config"),
        ("--preset configs/pretrain_vit.py:huge", "has no variant 'huge'"),
        ("--set data.bach=2", "did you mean data.batch"),
        ("--set data.batch", "give KEY=VALUE"),
        ("--set data.batch=two", "two"),
        ("--set data.crop=(31,32,32)", r"use e\.g\. \(16, 32, 32\)"),
        ("--turns 0", "1 or more"),
        ("--mode loader --against monai", "has no peer"),
        ("--mode cache --set data.batch=2", "takes no --preset"),
        ("--out table.json", "FILE.md"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(monkeypatch, tmp_path, capsys, flags, hint):
    monkeypatch.chdir(SCRIPTS.parent)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags.split()])
    assert BENCHMARK["main"]() == 2
    said = capsys.readouterr().err
    assert re.match(f"error: .*{hint}", said) and said.count("\n") == 1
