"""How a preparation stands: in place on a terminal, a line for each tenth elsewhere, from the first process only."""

import io
from contextlib import redirect_stdout

from brainseg_jax.core import progress


def test_tenths_where_there_is_no_terminal(capsys):
    show = progress.progress("standardising [b]")
    for done in range(21):
        show(done, 20)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and lines[0] == "standardising [b]: 0/20" and lines[-1] == "standardising [b]: 20/20, 0 s left"


def test_a_bar_in_place_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with redirect_stdout(terminal):
        show = progress.progress("standardising [b]")
        for done in range(21):
            show(done, 20)
    *before, last = terminal.getvalue().split("\r")
    assert len(before) == 20 and "━" in before[0] and before[0].endswith(" standardising [b]: 0/20   ")
    assert last.endswith("standardising [b]: 20/20, 0 s left   \n")


def test_silent_where_all_is_there_already(capsys):
    progress.progress("standardising")(20, 20)
    assert capsys.readouterr().out == ""


def test_other_processes_are_silent(capsys, monkeypatch):
    monkeypatch.setattr(progress.jax, "process_index", lambda: 1)
    progress.progress("standardising")(1, 20)
    assert capsys.readouterr().out == ""
