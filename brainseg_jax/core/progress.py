"""How a preparation stands, in one line."""

import sys
import time
from collections.abc import Callable

import jax


def progress(what: str) -> Callable[[int, int], None]:
    """A callback (done, total) that says how a preparation stands, with the time left: in place on a terminal, every tenth elsewhere."""
    began, already, told = time.perf_counter(), None, -1

    def show(done: int, total: int) -> None:
        nonlocal already, told
        already = done if already is None else already
        tenth = 10 * done // max(total, 1)
        if jax.process_index() != 0 or already == total or (tenth == told and not sys.stdout.isatty()):
            return
        told = tenth
        left = (time.perf_counter() - began) / (done - already) * (total - done) if done > already else None
        end = "\n" if not sys.stdout.isatty() or done == total else "\r"
        print(f"{what}: {done}/{total}" + (f", {left:.0f} s left   " if left is not None else ""), end=end, flush=True)

    return show
