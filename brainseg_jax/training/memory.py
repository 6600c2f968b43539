"""Whether a compiled step fits: what it needs of a device, and what JAX takes of a device's memory for itself."""

import os
from typing import Any, NamedTuple

from brainseg_jax.core.errors import InputError

GiB = 2**30
# For what the compiler does not count: buffers of NCCL, workspaces of cuDNN and cuBLAS. An estimate, measured nowhere.
MARGIN = 1.5 * GiB


class Memory(NamedTuple):
    """Bytes on each device: the state and the batch, results that are not written over them, and everything in between at its largest."""

    arguments: int
    outputs: int
    temporaries: int
    peak: int  # the compiler's own account of the most that is alive at a time

    @property
    def needed(self) -> int:
        """Bytes that are allocated for a step."""
        return self.arguments + self.outputs + self.temporaries


def memory(compiled: Any) -> Memory:
    """The memory of a compiled program, of each device."""
    m = compiled.memory_analysis()
    outputs = m.output_size_in_bytes - m.alias_size_in_bytes
    return Memory(m.argument_size_in_bytes, outputs, m.temp_size_in_bytes, m.peak_memory_in_bytes)


def memory_fraction() -> float:
    """The share of a device's memory that JAX takes: its own setting XLA_CLIENT_MEM_FRACTION (or by its older name), 0.75 by default.

    InputError for what is none.
    """
    name = next((name for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION") if os.environ.get(name)), "")
    value = os.environ.get(name, "0.75")
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{name} is {value!r}, which is no share of the memory; set it to e.g. 0.9, or not at all") from None


def fits(need: int, device: int) -> bool:
    """Whether a step that needs so many bytes, and the margin, fit into JAX's share of a device with so many."""
    return need + MARGIN <= memory_fraction() * device


def check_room(compiled: Any, device: Any) -> None:
    """Raises InputError, before anything is allocated, if a compiled step cannot fit the device; where its size is not known, never."""
    room = (device.memory_stats() or {}).get("bytes_limit")
    need = memory(compiled).needed
    if room and need > room:
        raise InputError(
            f"a step needs {need / GiB:.1f} GiB of each device, and JAX may take {room / GiB:.1f} of {device.device_kind}; use a smaller "
            "data.batch, remat=True, optim.accumulate=2 or a larger mesh.fsdp; brainseg plan --search finds what fits"
        )


def gib(number: float | int) -> str:
    """Bytes in GiB."""
    return f"{number / GiB:.2f}"
