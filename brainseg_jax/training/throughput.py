"""Throughput of training: crops per second, and the time spent waiting for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """A clock of steps and of waiting for batches; evaluations are not counted."""

    def __init__(self, batch: int):
        self.batch, self.began, self.wait, self.read_at = batch, time.perf_counter(), 0.0, 0
        self.seconds, self.steps = 0.0, 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for a batch; once a step."""
        began = time.perf_counter()
        yield
        self.wait, self.steps = self.wait + time.perf_counter() - began, self.steps + 1

    def read(self) -> dict[str, float]:
        """Crops per second and the fraction of time spent waiting for input, since the last reading."""
        now = time.perf_counter()
        seconds, wait, steps = now - self.began, self.wait, self.steps - self.read_at
        self.began, self.wait, self.read_at = now, 0.0, self.steps
        self.seconds += seconds
        return {"crops_per_second": steps * self.batch / seconds, "input_wait": wait / seconds}

    def per_step(self) -> float:
        return self.seconds / self.steps
