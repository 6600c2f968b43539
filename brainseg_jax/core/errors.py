"""User errors: one exception, whose text names the file or key and the remedy in one line, and helpers for wording and exit codes."""

import atexit
import difflib
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class InputError(Exception):
    """A user error: an unusable file, value or command. Commands print it in one line, without a traceback, and exit with code 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint " (did you mean 'x'?)" with the known name closest to an unknown one, or "" if none is close."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_few(names: Iterable[object], most: int = 3) -> str:
    """The first `most` names, comma-separated, and the number of the others."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def warnings(lines: Sequence[str], most: int = 10) -> list[str]:
    """The first `most` lines as printed warnings, and the number of the others."""
    more = len(lines) - most
    return [f"warning: {line}" for line in lines[:most]] + [f"warning: … and {more} more of this kind"] * (more > 0)


def one_line(name: object, error: Exception) -> str:
    """A one-line message for any exception raised while processing one of many files; `name` is the name of the file in the message."""
    if isinstance(error, InputError):
        return " ".join(str(error).splitlines())
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"{name}: not enough memory; close other programs, or run on a larger machine"
    if isinstance(error, OSError) and error.strerror:
        return f"{name}: {error.filename or 'a file'}: {error.strerror}; check the place and its permissions"
    return f"{name}: unexpected {type(error).__name__}: {' '.join(str(error).split())}; please report it"


def exit_code(command: Callable[[], int], stopped: str = "stopped") -> int:
    """The exit code of a command: its own; 2 after a user error, printed on stderr; 130 after Ctrl-C, with the line `stopped`.

    A closed output pipe, as behind `head`, ends the command silently with 141, as in the shell.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal or log must not stop a run
    usual, sys.unraisablehook = sys.unraisablehook, defer_ctrl_c
    try:
        try:
            return command()
        finally:
            sys.unraisablehook = usual
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _stdout_closed():
            return 141
        if error.strerror is None:  # not about a file, e.g. a time-out
            raise
        print(f"error: {error.filename or 'output'}: {error.strerror}; check the place, its permissions and room", file=sys.stderr)
    except BaseException as error:
        if not is_interrupt(error):
            raise
        # A command that saved before stopping says so in the KeyboardInterrupt.
        print((isinstance(error, KeyboardInterrupt) and str(error)) or stopped, file=sys.stderr)
        return 130
    return 2


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C or was caused by it: during its import, jaxlib turns Ctrl-C into an ImportError."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or is_interrupt(error.__cause__))


def exit_process(code: int) -> None:
    """Ends the process with the code from `exit_code`. All work is done by then, so Ctrl-C is ignored."""
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    if code != 130:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    # XLA threads that are compiling crash at interpreter shutdown, so skip it; multiprocessing's finalizers have to be run by hand.
    getattr(sys.modules.get("multiprocessing.util"), "_run_finalizers", lambda priority: None)(0)
    os._exit(code)


def defer_ctrl_c(unraisable: Any) -> None:
    """An unraisable hook that repeats a Ctrl-C from within a callback (e.g. JAX's, of the garbage collector), which Python only prints."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


def _stdout_closed() -> bool:
    """Whether the reader of stdout has gone. If so, stdout goes to /dev/null, or Python would complain when it flushes at exit."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if not poll.poll(0):
            return False
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, AttributeError):  # stdout is not a file, or Windows
        return False
    return True
