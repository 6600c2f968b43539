"""What has to be set before JAX is imported: where compiled programs are kept, and on a CPU how freed memory is kept."""

import ctypes
import importlib.util
import os
import platform
from pathlib import Path

ACCELERATORS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
# glibc's names for mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def cache_folder() -> Path:
    """Where caches lie unless the config says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brainseg_jax"


def start(compiled: Path) -> None:
    """Turns the compile cache on, in the folder that the environment names or else `compiled`; where there is only a CPU, keeps memory."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(importlib.util.find_spec, ACCELERATORS)):
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Asks glibc not to give freed memory back to the system. Works only before JAX has started its threads.

    XLA takes and frees a gigabyte in each step of a ViT-B; given back each time, it returns as 200,000 page faults.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
            libc.mallopt(option, value)
