"""A file is the old one or the new one, never half of either."""

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from brainseg_jax.core import files
from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import (
    atomic_write,
    check_own,
    check_place,
    read_beginning,
    read_text,
    shorten_name,
    without_formulas,
    write_table,
    write_text,
)
from brainseg_jax.data.labels import read_table
from brainseg_jax.data.manifest import apply_splits, read_manifest
from brainseg_jax.evaluation.pairs import read_pairs
from brainseg_jax.inference.resume import digest
from brainseg_jax.qc.report import read_case_records
from brainseg_jax.training import run_records
from brainseg_jax.training.metrics_log import read_metrics


def test_a_written_file_takes_the_place_and_makes_the_folder(tmp_path):
    with atomic_write(tmp_path / "a" / "b.txt") as part:
        part.write_text("new")
    assert (tmp_path / "a" / "b.txt").read_text() == "new"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "b.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(file) as part:
        part.write_text("ha")
        raise RuntimeError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_fault_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "out.tsv").mkdir()
    with pytest.raises(OSError) as fault:
        write_text(tmp_path / "out.tsv", "text")
    assert (fault.value.filename, list(tmp_path.iterdir())) == (str(tmp_path / "out.tsv"), [tmp_path / "out.tsv"])


def test_what_killed_programs_left_is_removed_and_what_is_under_way_is_not(tmp_path):
    with atomic_write(tmp_path / "mine.txt") as mine:
        mine.write_text("under way")
        files._sweep.cache_clear()
        child = subprocess.Popen([sys.executable, "-c", "pass"])
        child.wait()
        machine, _, process = mine.name.removesuffix(".part").rpartition(".")[2].partition("-")
        assert int(process) == os.getpid()
        kept = [tmp_path / f".a.npz.00000000-{child.pid}.part", tmp_path / ".notes.part", tmp_path / "b.part"]
        gone = [tmp_path / f".{'x' * n}.{machine}-{child.pid}.part" for n in (1, 200)]
        old = tmp_path / f".c.npz.00000000-{os.getpid()}.part"
        for file in (*kept, *gone, old):
            file.touch()
        os.utime(old, (0, 0))
        write_text(tmp_path / "other.txt", "")
        assert sorted(tmp_path.iterdir()) == sorted([*kept, mine, tmp_path / "other.txt"])
    assert (tmp_path / "mine.txt").read_text() == "under way"


def test_the_longest_name_can_be_written(tmp_path):
    write_text(tmp_path / ("x" * 255), "text")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


def test_a_full_disk_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(OSError) as fault, atomic_write(tmp_path / "out.tsv") as part:
        part.symlink_to("/dev/full")
        part.write_text("text")
    assert (fault.value.errno, fault.value.filename, list(tmp_path.iterdir())) == (errno.ENOSPC, str(tmp_path / "out.tsv"), [])


def test_places_are_tried_and_left_as_they_were(tmp_path):
    (tmp_path / "file").touch()
    check_place(tmp_path / "new" / "folder" / "out")
    with pytest.raises(InputError, match="file is a file, and nothing can be written below it"):
        check_place(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="/proc/x/y: nothing can be written in /proc"):
        check_place(Path("/proc/x/y"))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_long_names_are_cut_to_bytes_and_stay_apart():
    assert shorten_name("short", 20) == "short" and shorten_name("é" * 10, 20) == "é" * 10
    one, other = shorten_name("脳" * 99, 80), shorten_name("脳" * 98 + "x", 80)
    assert one.startswith("脳" * 20) and len(one.encode()) <= 80 and one != other


def test_spreadsheets_compute_nothing_of_a_table_and_numbers_stay_numbers(tmp_path):
    line = ["=cmd|' /C calc'!A0", "+1+1", "-a", "@SUM(1)", "\t=1", "＝1", "-12", "+3", -0.5, "-1e-3", "sub-1", "", "#cd3e4e"]
    write_table(tmp_path / "t.csv", "abcdefghijklm", without_formulas([line]), ",")
    with (tmp_path / "t.csv").open(newline="") as file:
        (found,) = list(csv.reader(file))[1:]
    assert found == [*(f"'{cell}" for cell in line[:6]), *map(str, line[6:])]


def test_names_that_are_no_text_can_be_written_about(tmp_path):
    write_text(tmp_path / "t", f"caf{os.fsdecode(bytes([0xE9]))}")
    assert (tmp_path / "t").read_text() == "caf\\udce9"


# Whatever reads a text that somebody else may have put there.
READERS = {
    "a table of labels": read_table,
    "a manifest": read_manifest,
    "a split": lambda file: apply_splits((), file),
    "pairs": read_pairs,
    "a run's record": run_records.read,
    "a run's metrics": read_metrics,
    "a case of a page": lambda file: read_case_records([file]),
    "any text": read_text,
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe.tsv")
    (tmp_path / "zero.tsv").symlink_to("/dev/zero")
    for file in (tmp_path / "pipe.tsv", tmp_path / "zero.tsv"):
        with pytest.raises(InputError) as refusal:
            READERS[reader](file)
        assert str(refusal.value) == f"{file}: is a pipe or device and no file; give a file"


def test_whatever_is_wrong_with_a_file_names_it_once(tmp_path):
    (file := tmp_path / "f").write_bytes(b"12")

    def refusal(path, fault=None):
        with pytest.raises(InputError) as line, files.open_regular(path, "give a scan") as stream:
            if fault:
                raise fault
            stream.read()
        return str(line.value)

    with files.open_regular(file, "give a scan") as stream:
        assert stream.read() == b"12"
    assert refusal(file, InputError("is odd; mend it")) == f"{file}: is odd; mend it"
    assert refusal(file, OSError(errno.EIO, "Input/output error")).startswith(f"{file}: cannot be read (Input/output error); check")
    assert refusal(tmp_path / "none") == f"{tmp_path}/none: no such file; check the path"
    assert refusal(tmp_path) == f"{tmp_path}: is a folder and no file; give a scan"
    assert refusal(tmp_path / "a\0b").endswith("b: a path cannot hold a NUL byte; correct it")


@pytest.mark.parametrize("reader", READERS)
def test_what_is_far_too_long_is_refused_before_it_fills_the_memory(tmp_path, reader):
    with (tmp_path / "long.tsv").open("wb") as file:
        file.truncate(2**40)  # a terabyte of zeros, none of which takes room
    with pytest.raises(InputError, match=r"long\.tsv: holds more than (64|256) MiB, which no table, list or record does; check that it"):
        READERS[reader](tmp_path / "long.tsv")


def test_a_text_of_the_longest_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TEXT", 5)
    (tmp_path / "t").write_text("12345")
    assert read_text(tmp_path / "t") == "12345"
    (tmp_path / "t").write_text("123456")
    with pytest.raises(InputError, match="holds more than"):
        read_text(tmp_path / "t")


def test_line_ends_of_every_system_end_a_line(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "people.csv").write_bytes(f"subject,image{end}1,x.nii{end}2,y.nii{end}".encode())
        assert [row.subject for row in read_manifest(tmp_path / "people.csv")] == ["1", "2"]


def test_a_pipe_where_something_is_to_be_written_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "out.tsv")
    with pytest.raises(InputError, match="--o: exists, and is no table of this command"):
        check_own("--o", tmp_path / "out.tsv", "table", "subject")
    assert (read_beginning(tmp_path / "out.tsv", 9), digest(str(tmp_path / "out.tsv"))) == (b"", "")
