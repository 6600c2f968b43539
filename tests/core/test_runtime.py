"""The process itself: those that it starts end when it does."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import brainseg_jax
from brainseg_jax.core import runtime
from brainseg_jax.core.runtime import SIGNALS

POOL = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from brainseg_jax.core.runtime import end_with_parent, block_signals

pool = ProcessPoolExecutor(1, get_context("spawn"), end_with_parent)
with block_signals():
    first = pool.submit(os.getpid)
print(first.result(), flush=True)
pool.submit(time.sleep, 300).result()
"""


def ended(process):
    """Whether a process of that number is gone, or is only waiting to be counted."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_children_end_with_a_killed_parent_and_not_by_what_is_meant_for_it():
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", POOL], cwd=root, stdout=subprocess.PIPE, text=True)
    with parent:
        child = int(parent.stdout.readline())
        held = int(re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{child}/status").read_text())[1], 16)
        for number in SIGNALS:
            assert held >> (number - 1) & 1, f"reached by {number!r} before it can ignore it"
            os.kill(child, number)
        time.sleep(0.1)
        assert not ended(child)
        parent.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not ended(child):
        time.sleep(0.02)
    assert ended(child)


@pytest.mark.parametrize("command", ["predict", "evaluate", "probe"])
def test_commands_that_predict_take_of_a_gpu_what_they_need(tmp_path, command):
    """Before JAX is imported, which reads it; what the user has set stays."""
    flags = {
        "predict": f"main(['--i={tmp_path}', '--o={tmp_path}/o'])",
        "evaluate": f"main(['--checkpoint=none', '--manifest={tmp_path}/none.tsv', '--o={tmp_path}/o.tsv'])",
        "probe": "run(main)",
    }[command]
    shutil.copy(Path(brainseg_jax.__file__).parent / "data" / "sample_files" / "mni_sym09c_T1_head.nii.gz", tmp_path)
    code = f"""
import os, sys
class Look:
    def find_spec(self, name, *_):
        if name == "jax":
            os._exit(7 if os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE") == {{}} and "JAX_COMPILATION_CACHE_DIR" in os.environ else 8)
sys.meta_path.insert(0, Look())
sys.argv[1:] = ["--checkpoint=none"]
from brainseg_jax.cli.{command} import *
sys.exit({flags})
"""
    for given in ({}, {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}):
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | given
        program = code.replace("{}", repr(given.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")))
        assert subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True).returncode == 7


def test_ctrl_c_is_answered_once_what_was_begun_is_done():
    done = []
    with pytest.raises(KeyboardInterrupt), runtime.delay_ctrl_c():
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done == ["all of it"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with runtime.delay_ctrl_c():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_ctrl_c_alone():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: runtime.delay_ctrl_c().__enter__()).result() is None
