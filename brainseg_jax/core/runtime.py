"""The process itself: what has to be set before JAX is imported, what memory it keeps, and that those it starts end with it."""

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
UNTRIED = "0.13"  # the first JAX that this release was not tested with
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def cache_folder() -> Path:
    """Where caches lie unless the config says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brainseg_jax"


def cores() -> int:
    """Cores this process may use; on a shared machine fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_compiled_programs() -> None:
    """Turns JAX's compile cache on, in the folder that the environment names or else in ours."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))


def known_flags(*flags: str) -> list[str]:
    """XLA's flags of these that the installed version knows.

    One that it does not know ends the process that reads it, without a traceback, so another process is asked: half a second.
    """

    def starts(flags: tuple[str, ...]) -> bool:
        command = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
        return subprocess.run(command, env=os.environ | {"XLA_FLAGS": " ".join(flags)}, capture_output=True).returncode == 0

    return list(flags) if starts(flags) else [flag for flag in flags if starts((flag,))]


def known_options(**options: Any) -> dict[str, Any]:
    """A program's compiler options of these that the installed XLA knows; with another one no program would compile."""
    import jax

    def compiles(name: str) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={name: options[name]}).lower().compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in options.items() if compiles(name)}


def private_of_jax(address: str, need: str) -> Any:
    """What JAX has at a private or experimental address, `module:name`, which a later release may move without notice.

    InputError that says what needs it, and with what to go on.
    """
    import jax

    try:
        return pkgutil.resolve_name(address)
    except (ImportError, AttributeError):
        where = address.replace(":", ".")
        raise InputError(f'{need}, and JAX {jax.__version__} has no {where}; pip install "jax<{UNTRIED}"') from None


def for_prediction() -> None:
    """Settles that compiled programs are kept, and that JAX takes of a GPU only what it needs: others may compute there."""
    keep_compiled_programs()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def trim_memory() -> None:
    """Returns to the system what is free but was kept: after compiling a network's step up to a gigabyte, which the step would come on top
    of."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # what asks a command to stop


@contextmanager
def block_signals(signals: Collection[int] = SIGNALS) -> Iterator[None]:
    """Processes and threads that are started inside are not reached by what asks a command to stop, from their first moment on.

    A terminal and a cluster send it to all processes of a command at once, and it is the first one's to answer.
    """
    resource_tracker.ensure_running()  # multiprocessing lets signals through again when it starts this one
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def delay_ctrl_c() -> Iterator[None]:
    """Ctrl-C that comes meanwhile is answered at the end, so that what is begun inside is not left half begun.

    To hold the signal is not enough for that: it may reach another thread, of JAX's for one, and is raised in the main one all the same.
    """
    usual, came = signal.getsignal(signal.SIGINT), []
    if not callable(usual) or threading.current_thread() is not threading.main_thread():  # ignored, or none of this thread's business
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if came:
            signal.raise_signal(signal.SIGINT)


def end_with_parent(*_: object) -> None:
    """Binds a process that multiprocessing started to the one that started it: to be called in it, first of all (an initializer).

    It ends as soon as the other one has, however that ended: a killed command would leave it waiting, with all its memory, for ever. What
    asks a command to stop is ignored (see `signals_held`).
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    # Not PR_SET_PDEATHSIG: that ends a child when the thread which started it does.
    threading.Thread(target=watch, daemon=True).start()


def with_huge_pages() -> None:
    """Starts this very command again with glibc's huge pages, where there is only a CPU and they have not been decided on.

    XLA takes and frees a gigabyte in each step of a ViT-B: 200,000 page faults, an eighth of the processor time, become a thousand. glibc
    reads the setting only when a process starts, hence the second start; process id, files and arguments stay.
    """
    only_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(importlib.util.find_spec, ACCELERATORS))
    if only_cpu and "GLIBC_TUNABLES" not in os.environ and platform.libc_ver()[0] == "glibc":
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
