"""How a preparation stands, in one line."""

import time
from collections.abc import Callable

import jax
from rich.console import Console
from rich.progress_bar import ProgressBar


def progress(what: str) -> Callable[[int, int], None]:
    """A callback (done, total) that says how a preparation stands, with the time left: a bar in place on a terminal, every tenth elsewhere.

    It is printed and not rich's live display, which has to be ended, or else the terminal is left without a cursor.
    """
    console, began, already, told = Console(highlight=False, soft_wrap=True), time.perf_counter(), None, -1

    def show(done: int, total: int) -> None:
        nonlocal already, told
        already = done if already is None else already
        live, tenth = console.is_terminal, 10 * done // max(total, 1)
        if jax.process_index() != 0 or already == total or (tenth == told and not live):
            return
        told = tenth
        left = (time.perf_counter() - began) / (done - already) * (total - done) if done > already else None
        line = f"{what}: {done}/{total}" + (f", {left:.0f} s left" if left is not None else "")
        bar = [ProgressBar(total, done, width=24)] if live else []
        console.print(*bar, f" {line}   " if live else line, end="\r" if live and done < total else "\n", markup=False)

    return show
