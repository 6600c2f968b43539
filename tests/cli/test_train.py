"""The command, as people run it: one line for what they can mend, and a run that can be stopped and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brainseg_jax.cli import config_flags as flags_of_commands
from brainseg_jax.data.manifest import read_manifest
from brainseg_jax.training.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]
CONFIG = "--config=configs/pretrain_vit.py"


def start(*flags, **environment):
    """The command, compiling as it does for users (see conftest.py)."""
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "brainseg_jax.main", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=plain | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def command(*flags):
    """(exit code, stdout, stderr)."""
    process = start(*flags)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def refused(*flags):
    """The one line on stderr of a command that exits with 2."""
    code, _, err = command(*flags)
    assert code == 2, err
    assert "Traceback" not in err and err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ([], "--config is missing"),
        (["--config=configs/nowhere.py"], "configs/nowhere.py"),
        ([f"{CONFIG}:tiny"], "trial, full"),
        ([CONFIG, "--config.vit.widht=3"], "widht"),
        ([CONFIG, "--config.vit.depth=deep"], "depth"),
        ([CONFIG, "--config.data.batch=x"], "--config.data.batch: "),
        ([CONFIG, CONFIG], "--config is given twice"),
        (["--config="], "--config is empty"),
        ([CONFIG, "--wrokdir=x"], "wrokdir"),
        ([CONFIG, "steps=3"], "--config.KEY=VALUE"),
    ],
    ids=[
        "no config",
        "no such file",
        "no such variant",
        "unknown key",
        "wrong type",
        "no number",
        "twice",
        "empty",
        "unknown flag",
        "no flag",
    ],
)
def test_a_mistyped_command_is_answered_with_one_line(flags, hint):
    assert hint in refused(*flags)


@pytest.mark.parametrize(
    ("module", "shared"), [("main", ["config", "devices"]), ("plan", ["config", "devices"]), ("parameters", ["config"])]
)
def test_the_help_names_the_flags_that_commands_share(module, shared):
    done = subprocess.run([sys.executable, "-m", f"brainseg_jax.{module}", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert all(f"  --{flag}: " in done.stdout for flag in shared), done.stdout


@pytest.mark.parametrize("name", ["--config", "-config"])
def test_a_config_that_cannot_be_read_as_python_is_one_line(tmp_path, name):
    (tmp_path / "mine.py").write_text("def get_config(:\n")
    assert refused(name, str(tmp_path / "mine.py")) == f"error: {tmp_path}/mine.py: line 1: SyntaxError: invalid syntax; correct the file\n"


def test_a_config_is_run_once_and_cannot_get_other_keys(tmp_path):
    """As it was written, with what the command line changes."""
    (tmp_path / "mine.py").write_text("print('run')\nfrom configs.pretrain_vit import get_config\n")
    code = "print(config_flags.CONFIG.value.steps, config_flags.CONFIG.value.is_locked)"
    script = f"import sys; from brainseg_jax.cli import config_flags; config_flags._parse(sys.argv, ''); {code}"
    words = [sys.executable, "-c", script, f"--config={tmp_path}/mine.py:full", "--config.steps=7"]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout == "run\n7 True\n"


@pytest.mark.parametrize("importing", [False, True])
def test_ctrl_c_is_one_line_wherever_it_comes(monkeypatch, capsys, importing):
    def interrupted(*_, **__):
        if importing:
            raise ImportError("Encountered an error while initializing the extension.") from KeyboardInterrupt()
        raise KeyboardInterrupt

    monkeypatch.setattr(flags_of_commands.app, "run", interrupted)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        flags_of_commands.run(print)
    err = capsys.readouterr().err
    assert ended.value.code == 130 and err.startswith("stopped; ") and err.count("\n") == 1


def test_another_error_is_none_of_ctrl_c(monkeypatch):
    def fails(*_, **__):
        raise ImportError("no module")

    monkeypatch.setattr(flags_of_commands.app, "run", fails)
    with pytest.raises(ImportError, match="no module"):
        flags_of_commands.run(print)


@pytest.mark.slow
def test_ctrl_c_while_scans_are_standardised_is_one_line_and_leaves_no_process(small_flags, tmp_path):
    """As a terminal sends it: to all processes of the command."""
    flags = [CONFIG, *small_flags, f"--config.data.cache={tmp_path / 'cache'}", f"--workdir={tmp_path / 'run'}"]
    process = start(*flags, PYTHONUNBUFFERED="1")
    while process.poll() is None and not process.stdout.readline().startswith("standardising scans: 0/4"):
        pass
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err.count("\n")) == (130, 1) and err.startswith("stopped; "), err
    # Workers end when they see that the command has.
    with pytest.raises(ProcessLookupError):
        for _ in range(600):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--config.vit.heads=7"], "vit.heads"),
        (["--config.data.crop=(16,16)"], "data.crop"),
        (["--config.data.batch=3", "--config.mesh.data=2"], "mesh"),
        (["--config.data.manifest=nowhere.tsv"], "nowhere.tsv"),
    ],
    ids=["bad value", "bad shape", "mesh", "no manifest"],
)
def test_what_cannot_work_is_answered_with_one_line(small_flags, tmp_path, flags, hint):
    assert hint in refused(CONFIG, *small_flags, *flags, f"--workdir={tmp_path / 'run'}")


@pytest.mark.slow
def test_a_person_on_two_sides_is_refused(cohort, small_flags, tmp_path):
    lines = ["subject\tsession\timage\tsplit"]
    lines += [f"same\t{i}\t{row.image}\t{row.split}" for i, row in enumerate(read_manifest(cohort))]
    (tmp_path / "people.tsv").write_text("\n".join(lines) + "\n")
    line = refused(CONFIG, *small_flags, f"--config.data.manifest={tmp_path / 'people.tsv'}", f"--workdir={tmp_path / 'run'}")
    assert "'same'" in line and "both train and val" in line


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_one_line(small_flags, tmp_path):
    flags = ["--config.optim.lr=1e30", "--config.optim.warmup=0.0", "--config.optim.clip=0.0"]
    assert "the loss is nan" in refused(CONFIG, *small_flags, *flags, f"--workdir={tmp_path / 'run'}")


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_and_started_again(small_flags, tmp_path):
    """The first command is told to stop, the second finishes, a third has nothing to do."""
    folder = tmp_path / "run"
    flags = [CONFIG, *small_flags, "--config.steps=400", "--config.eval_every=0.25", f"--workdir={folder}"]
    process = start(*flags, PYTHONUNBUFFERED="1")
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None and len(read_metrics(folder / "metrics.jsonl")) < 6:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "saved; the same command goes on from there" in out
    code, out, err = command(*flags)
    assert code == 0 and "going on from step" in out and "finished: 400 steps" in out, err
    rows = [row["step"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]
    assert rows == list(range(1, 401))
    config = json.loads((folder / "config.json").read_text())
    assert config["steps"] == {"value": 400, "from": "command line"} and config["optim.lr"]["from"] == "default"
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 2
    code, out, _ = command(*flags)
    assert code == 0 and "finished: 400 steps" in out


@pytest.mark.parametrize(("old", "now"), [("optim.peak", "optim.lr"), ("augment.cut.chance", "augment.field_of_view.chance")])
def test_old_names_of_keys_go_on_working_on_the_command_line(old, now):
    code = f"from brainseg_jax.cli import config_flags; config_flags._parse(sys.argv, ''); c = config_flags.CONFIG.value; print(c.{now})"
    words = [sys.executable, "-c", f"import sys; {code}", "--config=pretrain_vit:2mm", f"--config.{old}=0.25"]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout == "0.25\n"


def test_a_key_without_config_before_it_is_told_so():
    assert refused("--config=pretrain_vit", "--steps=3") == "error: Unknown command line flag 'steps'; did you mean --config.steps?\n"
