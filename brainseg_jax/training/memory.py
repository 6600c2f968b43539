"""Memory of a compiled step, and the share of a device's memory that JAX may allocate."""

import os
from typing import Any, NamedTuple

from brainseg_jax.core.errors import InputError

GiB = 2**30
# For what the compiler does not count: NCCL buffers, workspaces of cuDNN and cuBLAS. An estimate, not measured.
MARGIN = 1.5 * GiB


class Memory(NamedTuple):
    """Bytes per device: arguments (state and batch), outputs that do not reuse their buffers, and temporaries."""

    arguments: int
    outputs: int
    temporaries: int
    peak: int  # the compiler's own figure of the largest live memory

    @property
    def needed(self) -> int:
        """Bytes allocated for a step."""
        return self.arguments + self.outputs + self.temporaries


def memory(compiled: Any) -> Memory:
    """The memory per device of a compiled program."""
    m = compiled.memory_analysis()
    outputs = m.output_size_in_bytes - m.alias_size_in_bytes
    return Memory(m.argument_size_in_bytes, outputs, m.temp_size_in_bytes, m.peak_memory_in_bytes)


def memory_fraction() -> float:
    """The fraction of a device's memory that JAX allocates: XLA_CLIENT_MEM_FRACTION (or its older name), 0.75 by default.

    Raises InputError if it is no number.
    """
    name = next((name for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION") if os.environ.get(name)), "")
    value = os.environ.get(name, "0.75")
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{name} is {value!r}, which is no share of the memory; set it to e.g. 0.9, or not at all") from None


def fits(need: int, device: int) -> bool:
    """Whether a step of `need` bytes, with the margin, fits into JAX's fraction of `device` bytes."""
    return need + MARGIN <= memory_fraction() * device


def check_room(compiled: Any, device: Any) -> None:
    """Raises InputError, before anything is allocated, if a compiled step does not fit a device that reports its memory."""
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
