"""JAX's coordination service, by which the processes of a run exchange messages.

Unlike jax.experimental.multihost_utils it does not compute on devices: it works before anything is allocated, waits as long as another
process works, and if a process dies those that wait for it end, too.
"""

from typing import Any

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.runtime import private_of_jax

# The client of JAX's service has no public address.
SERVICE = "jax._src.distributed:global_state"


class Alone:
    """The state of a single process, if JAX does not have its state at the known address."""

    client = preemption_sync_manager = None
    process_id, num_processes = 0, 1


def find_state() -> Any:
    """The state of JAX's coordination service, or `Alone` if a later JAX does not have it there, which suffices for a single process."""
    required = ("client", "process_id", "num_processes", "preemption_sync_manager", "initialize_preemption_sync_manager")
    try:
        state = private_of_jax(SERVICE, "")
    except InputError:
        return Alone
    return state if all(hasattr(state, name) for name in required) else Alone


global_state = find_state()
