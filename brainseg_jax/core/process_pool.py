"""A map over a pool of processes, which end with the process that started them and import nothing but the function itself."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.runtime import block_signals, cores, delay_ctrl_c, end_with_parent


def map_in_processes(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int | None, what: str) -> Iterator[Any]:
    """The results of `work(job)` as they are done, in `workers` processes (None: one for each core); a single one is this process.

    Raises InputError if a process dies; `what`, e.g. "standardised scans", says in the message what the process did.
    """
    workers = min(workers or cores(), len(jobs))
    if workers <= 1:
        yield from map(work, jobs)
        return
    # Spawned, not forked: JAX's threads do not survive a fork.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin) as pool:
        try:
            # Ctrl-C only: a broken pool ends processes that are still starting by SIGTERM.
            with _main_hidden(), delay_ctrl_c(), block_signals((signal.SIGINT,)):
                futures = [pool.submit(work, job) for job in jobs]
            processes = multiprocessing.active_children()
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            pool.shutdown()
            codes = {process.exitcode for process in processes} - {0, None, -signal.SIGTERM}  # the pool ends the others by SIGTERM
            reason = "was killed, likely for memory; run again on fewer cores"
            if codes and -signal.SIGKILL not in codes:
                reason = f"ended with code {min(codes)}; see what it said above, and run again"
            raise InputError(f"a process that {what} {reason}") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    end_with_parent()
    # A broken pool ends its other processes by this signal, and waits for them.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """A block in which new processes do not import the main script, which would run again if it has no `if __name__ == "__main__"`."""
    main = sys.modules["__main__"]
    hidden = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    try:
        vars(main).update(dict.fromkeys(hidden))
        yield
    finally:
        vars(main).update(hidden)
