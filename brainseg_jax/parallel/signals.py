"""Stop requests by signals, which all processes of a run handle before the same step."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from brainseg_jax.parallel import service


@contextmanager
def stop_requests(step: int) -> Iterator[tuple[Callable[[int], bool], Callable[[], bool]]]:
    """Two functions: whether to stop before a step, because of Ctrl-C, SIGTERM, or SIGUSR1, which many clusters send before the time limit;
    and whether Ctrl-C was among the signals.

    A signal to one process stops all, before the same step. `step` is the first one; the function has to be called for every step.
    """
    asked: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if service.global_state.client is not None:
        # JAX handles SIGTERM in all processes, and they agree on a step that none of them has begun.
        numbers.remove(signal.SIGTERM)
        if service.global_state.preemption_sync_manager is None:
            jax.config.update("jax_enable_preemption_service", True)
            service.global_state.initialize_preemption_sync_manager()
        reached = service.global_state.preemption_sync_manager.reached_sync_point
        reached(step)

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        if service.global_state.client is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    handlers = {number: signal.signal(number, ask) for number in numbers}
    try:
        stopped = reached if service.global_state.client is not None else lambda step: bool(asked)
        yield stopped, lambda: signal.SIGINT in asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
