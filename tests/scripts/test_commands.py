"""The scripts that people run answer a mistyped command as the package's commands do."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # as it is for the script itself


@pytest.mark.parametrize(
    "name", ["release", "gallery", "label_sources", "pretraining_report", "finetuning_report", "robustness", "candidates"]
)
def test_a_mistyped_flag_is_one_line_and_exit_code_2(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", "--zzz=3"])
    assert importlib.import_module(name).main() == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "--zzz" in err and err.endswith(f"see python scripts/{name}.py --help\n") and err.count("\n") == 1
