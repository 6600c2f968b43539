"""What became of each trial: a line of a JSONL file as soon as it is done, so that a stopped series goes on; and the table of it."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

HELD, NOTICED, UNKNOWABLE, SKIPPED = "held", "noticed", "cannot be told", "skipped"
WRONG, TRACEBACK, ORPHAN, LOST, UNBOUNDED = "silently wrong", "traceback", "orphan", "lost step", "unbounded"
BAD = (WRONG, TRACEBACK, ORPHAN, LOST, UNBOUNDED)
MEANING = {
    HELD: "the right result, to the bit",
    NOTICED: "one line that names the file, the right exit code, nothing lost",
    UNKNOWABLE: "another content that nothing in the file contradicts: uncompressed scans and plain text have no checksum",
    WRONG: "another result without a word, where it could have been told",
    TRACEBACK: "a traceback, more than one line, or a line that does not name the file",
    ORPHAN: "processes, shared memory or temporary files were left",
    LOST: "work was lost that had been saved",
    UNBOUNDED: "took more than its time or memory",
    SKIPPED: "not possible on that machine",
}


class Verdict(NamedTuple):
    """How a trial ended, one of the words above, and what was done and seen."""

    outcome: str
    detail: str


class Trial(NamedTuple):
    """A trial's place in its series, from which everything random in it follows, and its verdict."""

    kind: str
    seed: int
    n: int
    outcome: str
    detail: str
    seconds: float


def append(file: Path, row: dict[str, Any]) -> None:
    """Writes a line, whole: two processes write to the file, and either may be killed."""
    line = (json.dumps(row) + "\n").encode()
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


def rows(file: Path) -> list[dict[str, Any]]:
    """All whole lines."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the series was killed while it wrote this one: that trial is done again
    return found


def trials(file: Path, seed: int) -> list[Trial]:
    """The trials of a seed that are done."""
    return [Trial(**row) for row in rows(file) if row.get("seed") == seed and "outcome" in row]


def table(done: Iterable[Trial], kinds: Iterable[str]) -> str:
    """A Markdown table, a line for each kind that was tried and one for all."""
    done = list(done)
    columns = ("tried", HELD, NOTICED, UNKNOWABLE, "silently wrong", "tracebacks", "orphans", "lost steps", "unbounded", SKIPPED)
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for kind in (*kinds, "all"):
        of_kind = [trial for trial in done if kind in (trial.kind, "all")]
        count = Counter(trial.outcome for trial in of_kind)
        words = (HELD, NOTICED, UNKNOWABLE, WRONG, TRACEBACK, ORPHAN, LOST, UNBOUNDED, SKIPPED)
        if of_kind:
            tried = len(of_kind) - count[SKIPPED]
            lines.append(f"| {kind} | {tried:,} | " + " | ".join(f"{count[word]:,}" for word in words) + " |")
    return "\n".join(lines)
