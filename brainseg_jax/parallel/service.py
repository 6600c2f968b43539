"""JAX's coordination service: where several processes of one run leave words for one another.

Words go through this service, not over the devices: it is there before anything is allocated, a word may be waited for as long as another
process works, and a process that dies takes those that wait for it along. jax.experimental.multihost_utils computes on the devices instead.
"""

from typing import Any

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.runtime import private_of_jax

# Where JAX keeps the client of its service has no public name.
SERVICE = "jax._src.distributed:global_state"


class Alone:
    """What stands for the service's state where JAX keeps it elsewhere: that of the only process."""

    client = preemption_sync_manager = None
    process_id, num_processes = 0, 1


def find_state() -> Any:
    """JAX's state of the coordination service; `Alone` where a later JAX has it no more, which takes nothing from a single process."""
    needed = ("client", "process_id", "num_processes", "preemption_sync_manager", "initialize_preemption_sync_manager")
    try:
        state = private_of_jax(SERVICE, "")
    except InputError:
        return Alone
    return state if all(hasattr(state, name) for name in needed) else Alone


global_state = find_state()
