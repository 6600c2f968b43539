"""Trials within this process: calls of the package's functions, bounded in time and memory, and what their errors are worth."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trials.ledger import NOTICED, TRACEBACK, UNBOUNDED, Verdict

from brainseg_jax.core.errors import InputError

SECONDS, BYTES = 20, 3 * 2**30  # a call may take, unless it is said otherwise; the gate lets in volumes of 2 GiB


class TooLongError(BaseException):
    """Not an Exception: nothing that is called may take it for one of its own."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TooLongError in a block that takes longer. Main thread only."""

    def ring(*_: Any) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tried(call: Callable[[], Any], named: str, judge: Callable[[Any], Verdict], seconds: float = 0) -> Verdict:
    """The judge's verdict of what a call returns, or what its error is worth: a user error has one line, which holds `named`."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with within(seconds or SECONDS):
            found = call()
    except InputError as error:
        verdict = said(str(error), named)
    except TooLongError:
        return Verdict(UNBOUNDED, f"took over {seconds or SECONDS} s")
    except Exception as error:
        return Verdict(TRACEBACK, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    else:
        verdict = judge(found)
    taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return Verdict(UNBOUNDED, f"took {taken >> 20} MiB") if taken > BYTES else verdict


def said(line: str, named: str) -> Verdict:
    """Whether an error is one line that names what it is about."""
    if "\n" in line.strip():
        return Verdict(TRACEBACK, f"{line.count(chr(10)) + 1} lines: {line[:300]!r}")
    return Verdict(NOTICED, line[:300]) if named in line else Verdict(TRACEBACK, f"does not name {named}: {line[:300]}")
