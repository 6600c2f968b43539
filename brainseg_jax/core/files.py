"""Files that are there wholly or not at all, whatever stops the program that writes them."""

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

FORMULAS = tuple("=+-@\t\r\n＝＋－＠")  # what a cell begins with that spreadsheets compute
ABANDONED = 24 * 3600  # seconds after which an unfinished file is nobody's, whatever machine it is of
SEAL = "checksums.json"  # in a checkpoint: the SHA-256 of its other files
TEXT = 2**26  # bytes that are read of a table, list or record, at most: a quarter of a million scans with long paths


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place to write to; what was written there takes `path`'s place when the block ends without an error. Makes the folder."""
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
    """Removes, once, what killed programs left unfinished in a folder: of this machine's processes that are gone, and what is a day old."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):  # another process was faster
            if match := re.fullmatch(r"\..+\.([0-9a-f]{8})-(\d{1,9})\.part", part.name):
                gone = match[1] == machine_id() and not is_running(int(match[2]))
                if gone or time.time() - part.stat().st_mtime > ABANDONED:
                    part.unlink()


@cache
def machine_id() -> str:
    """What tells machines apart that share a folder, and containers of one machine, whose process numbers are their own."""
    space = Path("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {space.stat().st_ino if space.exists() else ''}".encode()).hexdigest()[:8]


def is_running(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True


@contextmanager
def naming_errors(path: Path, part: Path | None = None) -> Iterator[None]:
    """An OSError says `path`, the name that the user gave, where it says none, as for a full disk, or that of its temporary `part`."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(part)):
            error.filename = str(path)
        raise


def shorten_name(name: str, most: int) -> str:
    """A file's name; where it has more than `most` bytes, its beginning and a hash of all of it."""
    spelt = name.encode("utf-8", "surrogateescape")
    mark = f"-{hashlib.sha256(spelt).hexdigest()[:8]}"
    return name if len(spelt) <= most else spelt[: most - len(mark)].decode(errors="ignore") + mark


def safe_name(name: str, most: int = 200) -> str:
    """A name as part of a file's name: of letters, digits and "-_." alone, not hidden, and of at most so many bytes."""
    return shorten_name("".join(c if c.isalnum() or c in "-_." else "-" for c in name).lstrip("."), most)


def missing_file(path: Path, remedy: str = "check the path") -> str:
    """Why there is no file: its content was not fetched, where git-annex or the like left a link to it, or else nothing is there."""
    if path.is_symlink():
        return f"{path}: its content was not fetched, it is a link to nothing; get it, e.g. with datalad get"
    return f"{path}: no such file; {remedy}"


def check_regular(path: Path, remedy: str = "give a file") -> os.stat_result:
    """A file's status, before it is opened: to open a pipe would wait for ever, and a device may never end.

    Raises InputError for those, and OSError where there is none, or a folder.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is a pipe or device and no file; {remedy}")
    return status


@contextmanager
def open_regular(path: Path, remedy: str) -> Iterator[BinaryIO]:
    """A file to read from. What is wrong with it, and every InputError of the block, becomes one line that names it; `remedy` is for what
    is no file."""
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
    """The first bytes of a file, at most so many; none of what is no file."""
    if not path.is_file():
        return b""
    with path.open("rb") as stream:
        return stream.read(most)


def read_bytes(path: Path, most: int) -> bytes:
    """What a file holds. Raises InputError for what is no file and for more than so many bytes, OSError as reading does."""
    check_regular(path)
    content = read_beginning(path, most + 1)  # not by its size: some files of the system say 0
    if len(content) > most:
        raise InputError(f"{path}: holds more than {most >> 20} MiB, which no table, list or record does; check that it is the right file")
    return content


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A file's text, with its line ends as they are. Raises InputError for what is no file and for more than TEXT bytes, OSError and
    UnicodeDecodeError as reading does."""
    return read_bytes(path, TEXT).decode(encoding)


def read_table_text(path: Path, where: str, form: str) -> str:
    """The text of a table that a user wrote, "" included. Raises InputError for whatever is wrong; `where` is the remedy for a file that is
    not there, and `form` what the table is saved as, e.g. "CSV"."""
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
    """`cells_of` of a CSV or TSV file, whose cells may be quoted. Raises InputError as it and `read_table_text` do, and for quotes."""
    text = read_table_text(path, where, "CSV")
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    # Strict, or a quote that is never closed swallows the rest of the file without a word.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}; check the quotes") from None
    return parse_cells(str(path), lines, columns, required, delimiter, rows)


def split_rows(text: str) -> list[tuple[int, list[str]]]:
    """The lines of a tab-separated text without quotes, as `cells_of` takes them."""
    return [(number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1)]


def parse_cells(
    name: str, lines: list[tuple[int, list[str]]], columns: Sequence[str], required: Sequence[str], delimiter: str, rows: str
) -> list[tuple[int, dict[str, str]]]:
    """Number and cells of each line that is not blank, below the one that names the columns: all of `columns`, as stripped text.

    Raises InputError, beginning with `name`, for columns that are unknown, missing or there twice, for lines with too many cells, and where
    there is none of the `rows`, as they are called.
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
    if lacking := [column for column in required if column not in header]:
        raise InputError(f"{name}: column {lacking[0]!r} is missing; the first line names the columns, of {listed}")
    found = []
    for number, cells in lines[1:]:
        if len(cells) > len(header):
            mend = "remove the tabs that are too many" if delimiter == "\t" else "quote cells that hold commas"
            raise InputError(f"{name}: line {number}: {len(cells)} cells for {len(header)} columns; {mend}")
        if any(cell.strip() for cell in cells):
            found.append((number, dict.fromkeys(columns, "") | dict(zip(header, map(str.strip, cells), strict=False))))
    if not found:
        raise InputError(f"{name}: no {rows}; add at least one line below the header")
    return found


def check_place(path: Path) -> None:
    """Raises InputError where nothing can be written at `path`, before there is something to write. Leaves nothing behind."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"{path}: {above} is a file, and nothing can be written below it; give another place")
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise InputError(f"{path}: nothing can be written in {above} ({error.strerror}); give another place") from None


def check_own(name: str, path: Path, what: str, mark: str) -> None:
    """Raises InputError, calling it `name`, for a folder and for a file that is not ours: `mark` stands near the beginning of one."""
    if path.is_dir():
        raise InputError(f"{name}: is a folder; give the name of a {what}")
    if path.exists() and mark.encode() not in read_beginning(path, 1000):
        raise InputError(f"{name}: exists, and is no {what} of this command; move it away, or give another name")


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8, all of it or nothing; bytes of file names that are no text as \\udcXX."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def without_formulas(lines: Iterable[Iterable[Any]]) -> Iterator[list[Any]]:
    """Lines of a table for people: text that a spreadsheet would compute, such as a subject "=1+1", begins with an apostrophe; numbers are
    left as they are."""
    for line in lines:
        yield [f"'{cell}" if str(cell).startswith(FORMULAS) and not _is_number(str(cell)) else cell for cell in line]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def table_text(columns: Iterable[str], lines: Iterable[Iterable[Any]], delimiter: str = "\t") -> str:
    """A table below the names of its columns."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([columns, *lines])
    return text.getvalue()


def write_table(path: Path, columns: Iterable[str], lines: Iterable[Iterable[Any]], delimiter: str = "\t") -> str:
    """Writes a table below the names of its columns, all of it or nothing, and returns what was written."""
    text = table_text(columns, lines, delimiter)
    write_text(path, text)
    return text
