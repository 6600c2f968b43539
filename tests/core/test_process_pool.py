"""Processes that work: what they give, how their death is told, and that they outlive nobody."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

START = "import os, signal, time; from brainseg_jax.core.process_pool import map_in_processes\n"


def start(script, folder):
    (folder / "script.py").write_text(START + script)
    return subprocess.Popen([sys.executable, folder / "script.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    out, error = start("print(sorted(map_in_processes(abs, [-1, -2, -3], 2, 'counted')), __file__)", tmp_path).communicate(timeout=60)
    assert (out, error) == (f"[1, 2, 3] {tmp_path / 'script.py'}\n", "")


def test_ctrl_c_while_a_process_still_starts_is_none_of_its_business(tmp_path, monkeypatch):
    """As a terminal sends it, to all processes at once: here when one is at the first file that Python imports."""
    stopped = "import signal, sys\nif '--multiprocessing-fork' in sys.orig_argv:\n    signal.raise_signal(signal.SIGINT)\n"
    (tmp_path / "sitecustomize.py").write_text(stopped)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    out, error = start("print(sorted(map_in_processes(abs, [-1, -2, -3], 2, 'counted')))", tmp_path).communicate(timeout=60)
    assert (out, error) == ("[1, 2, 3]\n", "")


HALFWAY = """
import threading
from multiprocessing import util

other, spawn = threading.Thread(target=time.sleep, args=(60,), daemon=True), util.spawnv_passfds
other.start()

def interrupted(path, words, *more):
    child = spawn(path, words, *more)
    if "--multiprocessing-fork" in words:
        signal.pthread_kill(other.ident, signal.SIGINT)
        time.sleep(0.1)
    return child

util.spawnv_passfds = interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    list(map_in_processes(abs, [-1, -2, -3], 2, "counted"))
except KeyboardInterrupt:
    print("stopped")
"""


def test_a_process_that_has_just_been_started_gets_its_work_in_spite_of_ctrl_c(tmp_path):
    """Which reached another thread than the one that starts it: else the process says that it got nothing."""
    assert start(HALFWAY, tmp_path).communicate(timeout=60) == ("stopped\n", "")


@pytest.mark.parametrize(
    ("death", "told"),
    [
        ("signal.raise_signal, [signal.SIGKILL] * 2", "a process that counted was killed, likely for memory; run again on fewer cores"),
        ("os._exit, [3, 3]", "a process that counted ended with code 3; see what it said above, and run again"),
    ],
)
def test_a_process_that_dies_is_told_with_how(tmp_path, death, told):
    _, error = start(f"list(map_in_processes({death}, 2, 'counted'))", tmp_path).communicate(timeout=60)
    assert error.rstrip().endswith(f"InputError: {told}")


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are looked for in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_the_one_that_started_them(tmp_path, number):
    marks = [tmp_path / "a", tmp_path / "b"]
    codes = [f"open({str(mark)!r}, 'w').close(); import time; time.sleep(60)" for mark in marks]
    script = f"for _ in map_in_processes(exec, {codes}, 2, 'slept'): pass"
    process = start(script, tmp_path)
    try:
        wait_for(lambda: all(mark.exists() for mark in marks))
        children = [int(pid) for task in Path(f"/proc/{process.pid}/task").iterdir() for pid in (task / "children").read_text().split()]
        workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(workers) == 2
    finally:
        process.send_signal(number)
        process.communicate(timeout=30)
    wait_for(lambda: not any(alive(pid) for pid in workers), seconds=2.0)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
