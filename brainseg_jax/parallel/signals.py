"""Requests to stop: signals, on which all processes of a run act before the same step."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from brainseg_jax.parallel import service


@contextmanager
def stop_requests(step: int) -> Iterator[tuple[Callable[[int], bool], Callable[[], bool]]]:
    """Whether the run has been asked to stop before a step: Ctrl-C, SIGTERM, or SIGUSR1, which many clusters send before the time limit;
    and whether Ctrl-C was among it.

    Of several processes one that is asked is enough, and all stop before the same step. `step` is the first one; each has to be asked for.
    """
    asked: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if service.global_state.client is not None:
        # JAX listens for SIGTERM in all processes and agrees on a step that none of them has begun.
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
