"""Reading and atomic writing of files: a file is written completely or not at all, whatever stops the program."""

import csv
import errno
import hashlib
import io
import os
import platform
import re
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from brainseg_jax.core.errors import InputError, did_you_mean

FORMULAS = tuple("=+-@\t\r\n＝＋－＠")  # first characters of a cell that spreadsheets evaluate as a formula
ABANDONED = 24 * 3600  # seconds after which an unfinished file counts as abandoned, whichever machine wrote it
SEAL = "checksums.json"  # in a checkpoint: the SHA-256 of its other files
TEXT = 2**26  # maximum bytes of a table, list or record: a quarter of a million scans with long paths


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file that replaces `path` when the block ends without an error. Creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    part = path.with_name(f".{shorten_name(path.name, 200)}.{machine_id()}-{os.getpid()}.part")
    try:
        with naming_errors(path, part):
            yield part
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@cache
def _sweep(folder: Path) -> None:
    """Removes, once, unfinished files in a folder: those of dead processes of this machine, and those a day old."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):  # another process was faster
            if match := re.fullmatch(r"\..+\.([0-9a-f]{8})-(\d{1,9})\.part", part.name):
                dead = match[1] == machine_id() and not is_running(int(match[2]))
                if dead or time.time() - part.stat().st_mtime > ABANDONED:
                    part.unlink()


@cache
def machine_id() -> str:
    """A hash of the host name and the PID namespace: one per machine sharing a folder, and one per container of a machine."""
    namespace = Path("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace.stat().st_ino if namespace.exists() else ''}".encode()).hexdigest()[:8]


def is_running(process: int) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(process, 0)
    except OSError as error:  # a PermissionError for another user's process
        return not isinstance(error, ProcessLookupError)
    return True


@contextmanager
def naming_errors(path: Path, part: Path | None = None) -> Iterator[None]:
    """A block whose OSErrors name `path`, where they name no file, as for a full disk, or the temporary file `part`."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(part)):
            error.filename = str(path)
        raise


def shorten_name(name: str, most: int) -> str:
    """A file name of at most `most` bytes: the name, or its beginning and a hash of all of it."""
    encoded = name.encode("utf-8", "surrogateescape")
    suffix = f"-{hashlib.sha256(encoded).hexdigest()[:8]}"
    return name if len(encoded) <= most else encoded[: most - len(suffix)].decode(errors="ignore") + suffix


def safe_name(name: str, most: int = 200) -> str:
    """A name that is safe within a file name: only letters, digits and "-_.", no leading dot, at most `most` bytes."""
    return shorten_name("".join(c if c.isalnum() or c in "-_." else "-" for c in name).lstrip("."), most)


def missing_file(path: Path, remedy: str = "check the path") -> str:
    """The message for a missing file: a dangling link, as git-annex leaves one for content not fetched, or no file at all."""
    if path.is_symlink():
        return f"{path}: its content was not fetched, it is a link to nothing; get it, e.g. with datalad get"
    return f"{path}: no such file; {remedy}"


def check_regular(path: Path, remedy: str = "give a file") -> os.stat_result:
    """The status of a regular file. Raises InputError for a pipe or device, whose reading might never end, and OSError for a folder or a
    missing file."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is a pipe or device and no file; {remedy}")
    return status


@contextmanager
def open_regular(path: Path, remedy: str) -> Iterator[BinaryIO]:
    """A regular file opened for reading. Raises InputError, naming the file, for whatever is wrong with it, and prefixes the file's name to
    InputErrors of the block; `remedy` is the advice for a path that is not a regular file."""
    if "\0" in str(path):
        raise InputError(f"{path}: a path cannot hold a NUL byte; correct it")
    try:
        check_regular(path, remedy)
        with path.open("rb") as file:
            try:
                yield file
            except InputError as refusal:
                raise InputError(f"{path}: {refusal}") from None
    except FileNotFoundError:
        raise InputError(missing_file(path)) from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder and no file; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions") from None


def read_beginning(path: Path, most: int) -> bytes:
    """The first bytes of a file, at most `most`; none if it is not a regular file."""
    if not path.is_file():
        return b""
    with path.open("rb") as stream:
        return stream.read(most)


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file. Raises InputError for a pipe or device and for more than `most` bytes, OSError as reading does."""
    check_regular(path)
    content = read_beginning(path, most + 1)  # the size in the status is not reliable: for some system files it is 0
    if len(content) > most:
        raise InputError(f"{path}: holds more than {most >> 20} MiB, which no table, list or record does; check that it is the right file")
    return content


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file, line ends unchanged. Raises InputError as `read_bytes` does for TEXT bytes, and UnicodeDecodeError."""
    return read_bytes(path, TEXT).decode(encoding)


def read_table_text(path: Path, where: str, form: str) -> str:
    """The text of a user's table, possibly "". Raises InputError for whatever is wrong with the file; `where` is the remedy for a missing
    file, `form` the file format, e.g. "CSV"."""
    try:
        text = read_text(path, "utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {where}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save it as {form} in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path}: line {line}: holds a zero byte, which is no text; save it as {form} in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_cells(path: Path, columns: Sequence[str], required: Sequence[str], where: str, rows: str) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV or TSV file, as `parse_cells` returns them; cells may be quoted. Raises InputError as it and `read_table_text` do,
    and for unbalanced quotes."""
    text = read_table_text(path, where, "CSV")
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    # Strict, or an unclosed quote silently swallows the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}; check the quotes") from None
    return parse_cells(str(path), lines, columns, required, delimiter, rows)


def split_rows(text: str) -> list[tuple[int, list[str]]]:
    """The lines of a tab-separated text without quotes, as `parse_cells` takes them."""
    return [(number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1)]


def parse_cells(
    name: str, lines: list[tuple[int, list[str]]], columns: Sequence[str], required: Sequence[str], delimiter: str, rows: str
) -> list[tuple[int, dict[str, str]]]:
    """The line number and cells (all of `columns`, stripped) of each non-blank line below the header.

    Raises InputError, beginning with `name`, for unknown, missing or duplicate columns, for lines with too many cells, and for a table
    without lines; `rows` is what the message calls them.
    """
    header = [cell.strip() for cell in lines[0][1]] if lines else []
    listed = ", ".join(columns) + ", separated by tabs" * (delimiter == "\t")
    if not any(header):
        raise InputError(f"{name}: the first line is empty; it names the columns, of {listed}")
    if "" in header:
        raise InputError(f"{name}: column {header.index('') + 1} has no name; name it, or remove what separates it from the others")
    for column in header:
        if column not in columns:
            raise InputError(f"{name}: column {column!r} is unknown{did_you_mean(column, columns)}; known are {listed}")
        if header.count(column) > 1:
            raise InputError(f"{name}: column {column!r} stands twice; remove one of the two")
    if missing := [column for column in required if column not in header]:
        raise InputError(f"{name}: column {missing[0]!r} is missing; the first line names the columns, of {listed}")
    table = []
    for number, cells in lines[1:]:
        if len(cells) > len(header):
            remedy = "remove the tabs that are too many" if delimiter == "\t" else "quote cells that hold commas"
            raise InputError(f"{name}: line {number}: {len(cells)} cells for {len(header)} columns; {remedy}")
        if any(cell.strip() for cell in cells):
            table.append((number, dict.fromkeys(columns, "") | dict(zip(header, map(str.strip, cells), strict=False))))
    if not table:
        raise InputError(f"{name}: no {rows}; add at least one line below the header")
    return table


def check_place(path: Path) -> None:
    """Raises InputError, before any work is done, if `path` is not writable. Leaves no file behind."""
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise InputError(f"{path}: {parent} is a file, and nothing can be written below it; give another place")
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise InputError(f"{path}: nothing can be written in {parent} ({error.strerror}); give another place") from None


def check_own(name: str, path: Path, what: str, mark: str) -> None:
    """Raises InputError, beginning with `name`, for a folder and for a file of another program: one without `mark` near its beginning."""
    if path.is_dir():
        raise InputError(f"{name}: is a folder; give the name of a {what}")
    if path.exists() and mark.encode() not in read_beginning(path, 1000):
        raise InputError(f"{name}: exists, and is no {what} of this command; move it away, or give another name")


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8, atomically; undecodable bytes of file names become \\udcXX."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def without_formulas(lines: Iterable[Iterable[Any]]) -> Iterator[list[Any]]:
    """The lines of a table with an apostrophe before text that a spreadsheet would evaluate, e.g. a subject "=1+1"; numbers stay."""
    for line in lines:
        yield [f"'{cell}" if str(cell).startswith(FORMULAS) and not _is_number(str(cell)) else cell for cell in line]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def table_text(columns: Iterable[str], lines: Iterable[Iterable[Any]], delimiter: str = "\t") -> str:
    """A table as text, below a header of its columns."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([columns, *lines])
    return text.getvalue()


def write_table(path: Path, columns: Iterable[str], lines: Iterable[Iterable[Any]], delimiter: str = "\t") -> str:
    """Writes a table below a header of its columns, atomically, and returns the text."""
    text = table_text(columns, lines, delimiter)
    write_text(path, text)
    return text
