"""A progress bar for preparations before training or prediction."""

import time
from collections.abc import Callable

import jax
from rich.console import Console
from rich.progress_bar import ProgressBar


def progress(what: str) -> Callable[[int, int], None]:
    """A callback (done, total) that prints progress and the time left: a bar in place on a terminal, else a line every tenth.

    Not rich's live display, which leaves the terminal without a cursor if it is not ended.
    """
    console, start, at_start, printed = Console(highlight=False, soft_wrap=True), time.perf_counter(), None, -1

    def show(done: int, total: int) -> None:
        nonlocal at_start, printed
        at_start = done if at_start is None else at_start
        live, tenth = console.is_terminal, 10 * done // max(total, 1)
        if jax.process_index() != 0 or at_start == total or (tenth == printed and not live):
            return
        printed = tenth
        left = (time.perf_counter() - start) / (done - at_start) * (total - done) if done > at_start else None
        line = f"{what}: {done}/{total}" + (f", {left:.0f} s left" if left is not None else "")
        bar = [ProgressBar(total, done, width=24)] if live else []
        console.print(*bar, f" {line}   " if live else line, end="\r" if live and done < total else "\n", markup=False)

    return show
