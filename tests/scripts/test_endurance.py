"""The endurance run: its short form finds nothing, what it finds elsewhere has the right word, and its guards are there."""

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from brainseg_jax.core.errors import InputError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as it is for the script itself
bounds, damage, files, guards, kinds, ledger, report = (
    importlib.import_module(f"trials.{name}") for name in ("bounds", "damage", "files", "guards", "kinds", "ledger", "report")
)


@pytest.mark.slow
def test_the_short_form_ends_well(tmp_path):
    command = [sys.executable, "scripts/endurance.py", "--short", "--seed=1", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = ledger.trials(tmp_path / "trials.jsonl", 1)
    wanted = {name: kind.short for name, kind in kinds.KINDS.items() if kind.short}
    assert {name: sum(trial.kind == name for trial in tried) for name in wanted} == wanted
    assert {trial.outcome for trial in tried} == {ledger.HELD, ledger.NOTICED, ledger.UNKNOWABLE}
    again = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=500)
    assert again.stdout == done.stdout and ledger.trials(tmp_path / "trials.jsonl", 1) == tried, "what is done is done again"


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    (folder / "files").mkdir()
    files.make(folder / "files")
    return folder


@pytest.mark.parametrize(("call", "word"), [
    (lambda: 1, ledger.HELD),
    (lambda: 2, ledger.WRONG),
    (lambda: exec("raise KeyError('a')"), ledger.TRACEBACK),
    (lambda: time.sleep(5), ledger.UNBOUNDED),
])  # fmt: skip
def test_how_a_call_ends(call, word, monkeypatch):
    monkeypatch.setattr(bounds, "SECONDS", 0.05)
    judge = lambda found: ledger.Verdict(ledger.HELD if found == 1 else ledger.WRONG, "")  # noqa: E731
    assert bounds.tried(call, "x.nii", judge).outcome == word


@pytest.mark.parametrize(
    ("line", "word"), [("a/x.nii: is cut", ledger.NOTICED), ("is cut", ledger.TRACEBACK), ("x.nii:\nis cut", ledger.TRACEBACK)]
)
def test_a_user_error_is_one_line_that_names_the_file(line, word):
    def call():
        raise InputError(line)

    assert bounds.tried(call, "x.nii", lambda found: None).outcome == word


def test_a_reader_that_notices_nothing_is_found_out(material, tmp_path):
    """Of a file that cannot be checked what could be told is wrong, and what could not is counted apart."""
    blind = files.Target("labels.nii.gz", lambda path: path.read_bytes() if path.exists() else b"", 0)
    outcomes = set()
    for n in range(20):
        (tmp_path / str(n)).mkdir()
        outcomes.add(files.trial(blind, material, np.random.default_rng(n), tmp_path / str(n)).outcome)
    assert outcomes == {ledger.WRONG}


def test_harms_follow_from_the_seed_and_change_something():
    content = bytes(range(256)) * 8
    for n in range(200):
        (after, words), again = (damage.harmed(content, np.random.default_rng(n)) for _ in range(2))
        assert (after, words) == again
        assert after != content or words.startswith(("zeros", "0000", "ffff", "flipped bit")), words


def test_the_table_counts(tmp_path):
    file = tmp_path / "t.jsonl"
    for n, outcome in enumerate((ledger.HELD, ledger.HELD, ledger.LOST, ledger.SKIPPED)):
        ledger.append(file, ledger.Trial("a", 0, n, outcome, "", 1.0)._asdict())
    ledger.append(file, ledger.Trial("a", 1, 0, ledger.WRONG, "of another seed", 1.0)._asdict())
    with file.open("a") as stream:
        stream.write('{"kind": "a", "seed": 0, "n"')  # killed while it wrote
    done = ledger.trials(file, 0)
    assert len(done) == 4
    assert ledger.table(done, ["a", "b"]).splitlines()[2:] == [
        "| a | 3 | 2 | 0 | 0 | 0 | 0 | 0 | 1 | 0 | 1 |",
        "| all | 3 | 2 | 0 | 0 | 0 | 0 | 0 | 1 | 0 | 1 |",
    ]


@pytest.mark.parametrize("guard", guards.GUARDS, ids=lambda guard: guard.what)
def test_each_guard_is_where_the_list_says_and_has_a_test(guard):
    assert (ROOT / guard.file).read_text().count(guard.old) == 1, f"{guard.file}: the guard is not there any longer as GUARDS has it"
    file, _, name = guard.test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()


def test_a_report_without_trials_is_one_line(tmp_path):
    with pytest.raises(InputError, match="holds no trial of seed 0; run"):
        report.write(tmp_path / "t.jsonl", 0, tmp_path / "page.md")
