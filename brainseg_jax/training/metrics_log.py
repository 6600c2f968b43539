"""The log of a run, by process 0: metrics.jsonl, TensorBoard files, and a progress bar on a terminal or plain lines elsewhere."""

import json
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import naming_errors, read_bytes, write_text

try:
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import masked_crc32c
    from tensorboardX.summary import scalar
except ImportError:  # the extra "view" is not installed
    Event = None

METRICS = 2**28  # bytes of a metrics.jsonl that are read at most: more than a million lines


class Writer:
    """Writes metrics to files and messages to the terminal; does nothing in processes other than the first."""

    def __init__(self, folder: Path, steps: int, start: int, out: TextIO | None = None):
        self.active = jax.process_index() == 0
        self.console = Console(file=out or sys.stdout, highlight=False, soft_wrap=True, quiet=not self.active)
        if not self.active:
            return
        self.file = folder / "metrics.jsonl"
        _forget_after(self.file, start)
        self.board = TensorBoard(folder / "tb", start + 1 if start else 0) if Event else None
        self.bar = None
        if self.console.is_terminal:
            step, line = TextColumn("step {task.completed}/{task.total}"), TextColumn("{task.fields[line]}")
            self.bar = Progress(step, BarColumn(bar_width=24), TimeRemainingColumn(), line, console=self.console, transient=True)
            self.task = self.bar.add_task("", total=steps, completed=start, line="")
            self.bar.start()

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False)

    def scalars(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Appends {"step", "kind", "time", name: value} to metrics.jsonl, and the values to TensorBoard as kind/name."""
        if not self.active:
            return
        # Opened for each line: a buffer would fail a second time, on closing, when the disk is full.
        with naming_errors(self.file), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "kind": kind, "time": round(time.time(), 3)} | values) + "\n")
        if self.board:
            self.board.scalars(step, {f"{kind}/{name}": value for name, value in values.items()})

    def progress(self, step: int, line: str, eta: float) -> None:
        """Shows the progress: on a terminal in place, elsewhere as a line; `eta` is the time left in seconds."""
        if not self.active:
            return
        if self.bar:
            self.bar.update(self.task, completed=step, line=line)
        else:
            self.say(f"step {step}  {line}  {_duration(eta)} left")

    def close(self) -> None:
        """Ends the progress bar; files are closed after each line."""
        if self.active and self.bar:
            self.bar.stop()


class TensorBoard:
    """An event file for TensorBoard in `folder`; values of earlier files from step `since` on are hidden.

    tensorboardX's own writer uses a thread, where a full disk is a traceback instead of an error of the run.
    """

    def __init__(self, folder: Path, since: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._append([Event(file_version="brain.Event:2"), Event(step=since, session_log=SessionLog(status=SessionLog.START))])

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Appends the values of a step, by name."""
        self._append([Event(step=step, summary=scalar(name, value)) for name, value in values.items()])

    def _append(self, events: list[Any]) -> None:
        """TFRecords: length, its checksum, content, its checksum."""
        with naming_errors(self.file), self.file.open("ab") as stream:
            for event in events:
                event.wall_time = time.time()
                content = event.SerializeToString()
                length = struct.pack("<Q", len(content))
                stream.write(b"".join((length, _checksum(length), content, _checksum(content))))


def _checksum(content: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(content))


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, [] if there is none; without a last line that a killed run left unfinished.

    Raises InputError for any other damaged line, and for what is no regular file or too long.
    """
    rows, lines = [], read_bytes(file, METRICS).splitlines() if file.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append(row | {"step": row["step"], "kind": row["kind"]})
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise InputError(f"{file}: line {number} is damaged; bring it back from a backup, or take this line out") from None
    return rows


def _forget_after(file: Path, start: int) -> None:
    """Drops rows that an interrupted run wrote after the checkpoint it resumes from: they are written again."""
    rows = [row for row in read_metrics(file) if row["step"] <= start] if start else []
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
