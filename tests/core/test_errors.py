"""What people read of an error, wherever they read it."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from brainseg_jax.core.errors import InputError, exit_code

ROOT = Path(__file__).parents[2]


def test_output_in_ascii_is_no_reason_to_stop(monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)

    def command():
        print("1 × cpu")
        raise InputError("Müller.nii: no such file")

    assert exit_code(command) == 2
    for stream, text in ((out, b"1 \\xd7 cpu\n"), (err, b"error: M\\xfcller.nii: no such file\n")):
        stream.flush()
        assert stream.buffer.getvalue() == text


STOPPING = """
import sys
class Stop:
    def find_spec(self, name, *_):
        if name == NAME:
            RAISE
sys.meta_path.insert(0, Stop())
"""


@pytest.mark.parametrize(
    ("module", "needs"),
    [
        ("brainseg_jax.predict", "argparse"),
        ("brainseg_jax.evaluate", "ml_collections"),
        ("brainseg_jax.probe", "ml_collections"),
        ("brainseg_jax.plan", "ml_collections"),
        ("brainseg_jax.main", "ml_collections"),
        ("converters.convert", "ml_collections"),
    ],
)
def test_ctrl_c_while_a_command_is_imported_is_one_line(tmp_path, module, needs):
    """As a user presses it who has mistyped: when Python looks for what the command needs."""
    assert interrupted(tmp_path, needs, "raise KeyboardInterrupt", "-m", module) == (130, "", "stopped\n")


@pytest.mark.parametrize("raised", ["raise KeyboardInterrupt", "raise ImportError('of jaxlib') from KeyboardInterrupt()"])
@pytest.mark.parametrize("needs", ["argparse", "ml_collections"])
def test_ctrl_c_while_a_script_is_imported_is_one_line(tmp_path, needs, raised):
    assert interrupted(tmp_path, needs, raised, "scripts/prepare_data.py") == (130, "", "stopped\n")


def test_ctrl_c_that_is_lost_in_a_callback_while_a_script_is_imported_is_one_line(tmp_path):
    """As in JAX's of the garbage collector."""
    lost = "import types, time; sys.unraisablehook(types.SimpleNamespace(exc_type=KeyboardInterrupt)); time.sleep(5)"
    assert interrupted(tmp_path, "ml_collections", lost, "scripts/prepare_data.py") == (130, "", "stopped\n")


def test_another_error_while_a_script_is_imported_is_shown_whole(tmp_path):
    code, _, err = interrupted(tmp_path, "ml_collections", "raise ImportError('missing')", "scripts/prepare_data.py")
    assert code == 1 and err.startswith("Traceback") and err.endswith("ImportError: missing\n")


def interrupted(tmp_path, needs, raised, *command):
    """(exit code, stdout, stderr) of Python where this is raised when it looks for what a command needs."""
    (tmp_path / "sitecustomize.py").write_text(STOPPING.replace("NAME", repr(needs)).replace("RAISE", raised))
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": path})
    return done.returncode, done.stdout, done.stderr


def test_ctrl_c_in_a_command_is_one_line(capsys):
    def command():
        raise KeyboardInterrupt

    assert exit_code(command) == 130 and capsys.readouterr().err == "stopped\n"


def test_an_error_of_the_systems_kind_that_is_no_files_is_not_swallowed():
    def command():
        raise TimeoutError("Barrier timed out")

    with pytest.raises(TimeoutError, match="Barrier timed out"):
        exit_code(command)


def test_what_was_saved_before_ctrl_c_is_said(capsys):
    def command():
        raise KeyboardInterrupt("stopped at step 3, saved")

    assert exit_code(command) == 130 and capsys.readouterr().err == "stopped at step 3, saved\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_ends_a_command_without_a_word(unbuffered):
    """As in `command | head`."""
    read, write = os.pipe()
    os.close(read)
    code = r"import sys; from brainseg_jax.core.errors import exit_code; sys.exit(exit_code(lambda: print(9 * 'line\n') or 0))"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_of_another_kind_is_said(capsys):
    def command():
        raise BrokenPipeError(32, "Broken pipe", "worker")

    assert exit_code(command) == 2 and capsys.readouterr().err.startswith("error: worker: Broken pipe")


def test_ctrl_c_that_is_lost_in_a_callback_is_raised_a_moment_later(capsys):
    def command():
        hook = sys.unraisablehook
        hook(SimpleNamespace(exc_type=KeyboardInterrupt))
        time.sleep(5)
        return 0

    began = time.monotonic()
    assert exit_code(command) == 130 and time.monotonic() - began < 5
    assert capsys.readouterr().err == "stopped\n"
