"""The one exception for what a user can mend, whose text names the file or key and the remedy in one line; and words such texts share."""

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
    """A file, a value or a command that cannot be used. Commands print it as one line, without a traceback, and exit with 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What follows a name that is not known: in brackets the known one that is closest to it, or nothing."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_few(names: Iterable[object], most: int = 3) -> str:
    """The first of the names, and how many more there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def warnings(lines: Sequence[str], most: int = 10) -> list[str]:
    """The lines as they are printed: the first of them, and how many more there are."""
    more = len(lines) - most
    return [f"warning: {line}" for line in lines[:most]] + [f"warning: … and {more} more of this kind"] * (more > 0)


def one_line(name: object, error: Exception) -> str:
    """One line on why one of many files could not be treated, whatever was raised: `name` is what the line calls it."""
    if isinstance(error, InputError):
        return " ".join(str(error).splitlines())
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"{name}: not enough memory; close other programs, or run on a larger machine"
    if isinstance(error, OSError) and error.strerror:
        return f"{name}: {error.filename or 'a file'}: {error.strerror}; check the place and its permissions"
    return f"{name}: unexpected {type(error).__name__}: {' '.join(str(error).split())}; please report it"


def exit_code(command: Callable[[], int], stopped: str = "stopped") -> int:
    """What a command returns; 2, once one line on stderr says it, for what the user can mend; 130, after the line `stopped`, for Ctrl-C.

    Where what reads the output has gone, as `head` does, the command ends without a word, with 141 as the shell's own do.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal or a log in ASCII is no reason to stop
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
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141
        if error.strerror is None:  # no file's: a time-out, for one
            raise
        print(f"error: {error.filename or 'output'}: {error.strerror}; check the place, its permissions and room", file=sys.stderr)
    except BaseException as error:
        if not is_interrupt(error):
            raise
        # A command that saved before it stopped says so.
        print((isinstance(error, KeyboardInterrupt) and str(error)) or stopped, file=sys.stderr)
        return 130
    return 2


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C or came of it: jaxlib, where it comes while that is being imported, makes an ImportError of it."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or is_interrupt(error.__cause__))


def exit_process(code: int) -> None:
    """Ends the process with what `exit_code` gave. All is done and said then, and Ctrl-C comes too late."""
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    if code != 130:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    # XLA's threads, where they are compiling, do not survive the interpreter's end: what multiprocessing releases then is released here.
    getattr(sys.modules.get("multiprocessing.util"), "_run_finalizers", lambda priority: None)(0)
    os._exit(code)


def defer_ctrl_c(lost: Any) -> None:
    """Ctrl-C that came within a callback, JAX's of the garbage collector for one, which Python would only print: raised a moment later."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def _nobody_reads() -> bool:
    """Whether what reads stdout has gone; if so nothing more is written there, also not at the end, where Python would complain."""
    try:
        gone = select.poll()
        gone.register(sys.stdout.fileno(), 0)
        if not gone.poll(0):
            return False
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, AttributeError):  # a stdout that is no file, or Windows
        return False
    return True
