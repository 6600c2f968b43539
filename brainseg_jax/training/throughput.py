"""How fast steps are, and how long they wait for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Time spent on steps and on waiting for batches; evaluations are not charged to the steps around them."""

    def __init__(self, batch: int):
        self.batch, self.began, self.wait, self.read_at = batch, time.perf_counter(), 0.0, 0
        self.seconds, self.steps = 0.0, 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        at = time.perf_counter()
        yield
        self.began += time.perf_counter() - at

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For the next batch: once a step."""
        at = time.perf_counter()
        yield
        self.wait, self.steps = self.wait + time.perf_counter() - at, self.steps + 1

    def read(self) -> dict[str, float]:
        """Throughput and input-wait share since the last reading, of the steps that were done here."""
        now = time.perf_counter()
        seconds, wait, steps = now - self.began, self.wait, self.steps - self.read_at
        self.began, self.wait, self.read_at = now, 0.0, self.steps
        self.seconds += seconds
        return {"crops_per_second": steps * self.batch / seconds, "input_wait": wait / seconds}

    def per_step(self) -> float:
        return self.seconds / self.steps
