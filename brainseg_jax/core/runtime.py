"""The process: environment variables to set before JAX is imported, XLA's options, memory, signals and child processes."""

import ctypes
import importlib.util
import multiprocessing
import os
import pkgutil
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from brainseg_jax.core.errors import InputError

ACCELERATORS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
UNTRIED = "0.13"  # the first JAX version that this release was not tested with
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def cache_folder() -> Path:
    """The default folder of caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brainseg_jax"


def cores() -> int:
    """The number of cores this process may use; on a shared machine fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_compiled_programs() -> None:
    """Turns on JAX's compilation cache, in the folder of the environment variable or else in ours."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))


def known_flags(*flags: str) -> list[str]:
    """Those of the given XLA flags that the installed version knows.

    An unknown flag kills the process that reads it, without a traceback, so they are tried in a subprocess: half a second.
    """

    def starts(flags: tuple[str, ...]) -> bool:
        command = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
        return subprocess.run(command, env=os.environ | {"XLA_FLAGS": " ".join(flags)}, capture_output=True).returncode == 0

    return list(flags) if starts(flags) else [flag for flag in flags if starts((flag,))]


def known_options(**options: Any) -> dict[str, Any]:
    """Those of the given compiler options that the installed XLA knows; an unknown one makes every compilation fail."""
    import jax

    def compiles(name: str) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={name: options[name]}).lower().compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in options.items() if compiles(name)}


def private_of_jax(address: str, need: str) -> Any:
    """The object at a private or experimental address of JAX, `module:name`, which a later release may move without notice.

    Raises InputError, beginning with `need`, if it is not there, with the JAX versions that have it.
    """
    import jax

    try:
        return pkgutil.resolve_name(address)
    except (ImportError, AttributeError):
        raise InputError(f'{need}, and JAX {jax.__version__} has no {address.replace(":", ".")}; pip install "jax<{UNTRIED}"') from None


def for_prediction() -> None:
    """Turns on the compilation cache and turns off preallocation of GPU memory, since others may use the GPU."""
    keep_compiled_programs()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def trim_memory() -> None:
    """Returns free memory that glibc keeps to the system: after compiling a training step up to a gigabyte."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # requests to stop


@contextmanager
def block_signals(signals: Collection[int] = SIGNALS) -> Iterator[None]:
    """A block whose new processes and threads do not receive stop signals, from their first moment on.

    A terminal or cluster sends them to all processes of a command at once; only the first process handles them.
    """
    resource_tracker.ensure_running()  # multiprocessing unblocks signals when it starts this process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def delay_ctrl_c() -> Iterator[None]:
    """A block during which Ctrl-C is held back until its end, so that nothing is interrupted half done.

    Blocking the signal is not enough: it may reach another thread, e.g. one of JAX's, and is raised in the main thread all the same.
    """
    handler, received = signal.getsignal(signal.SIGINT), []
    if not callable(handler) or threading.current_thread() is not threading.main_thread():  # ignored, or not this thread's to handle
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: received.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


def end_with_parent(*_: object) -> None:
    """Makes a process started by multiprocessing end when its parent does, however that ends; call it first in the process (initializer).

    Otherwise a killed command leaves it waiting for ever, with all its memory. Stop signals are ignored (see `block_signals`).
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    # Not PR_SET_PDEATHSIG, which ends a child when the thread that started it ends.
    threading.Thread(target=watch, daemon=True).start()


def with_huge_pages() -> None:
    """Restarts the command with glibc's huge pages on a machine with a CPU only, unless GLIBC_TUNABLES is set.

    XLA allocates and frees a gigabyte in each step of a ViT-B: 200,000 page faults, an eighth of the CPU time, become a thousand. glibc
    reads the setting only when a process starts, hence the restart; process id, files and arguments stay.
    """
    only_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(importlib.util.find_spec, ACCELERATORS))
    if only_cpu and "GLIBC_TUNABLES" not in os.environ and platform.libc_ver()[0] == "glibc":
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
