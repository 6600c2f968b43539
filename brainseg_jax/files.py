"""Files that are there wholly or not at all, whatever stops the program that writes them."""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write to; what was written there takes `path`'s place when the block ends without an error. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8, all of it or nothing."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_table(path: Path, columns: Iterable[str], lines: Iterable[Iterable[Any]], delimiter: str = "\t") -> str:
    """Writes a table below the names of its columns, all of it or nothing, and returns what was written."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([columns, *lines])
    write_text(path, text.getvalue())
    return text.getvalue()
