"""A file is the old one or the new one, never half of either."""

from pathlib import Path

import pytest

from brainseg_jax.errors import InputError
from brainseg_jax.files import check_place, shorten, whole, write_text


def test_a_written_file_takes_the_place_and_makes_the_folder(tmp_path):
    with whole(tmp_path / "a" / "b.txt") as part:
        part.write_text("new")
    assert (tmp_path / "a" / "b.txt").read_text() == "new"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "b.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), whole(file) as part:
        part.write_text("ha")
        raise RuntimeError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_fault_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "out.tsv").mkdir()
    with pytest.raises(OSError) as fault:
        write_text(tmp_path / "out.tsv", "text")
    assert (fault.value.filename, list(tmp_path.iterdir())) == (str(tmp_path / "out.tsv"), [tmp_path / "out.tsv"])


def test_places_are_tried_and_left_as_they_were(tmp_path):
    (tmp_path / "file").touch()
    check_place(tmp_path / "new" / "folder" / "out")
    with pytest.raises(InputError, match="file is a file, and nothing can be written below it"):
        check_place(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="/proc/x/y: nothing can be written in /proc"):
        check_place(Path("/proc/x/y"))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_long_names_are_cut_to_bytes_and_stay_apart():
    assert shorten("short", 20) == "short" and shorten("é" * 10, 20) == "é" * 10
    one, other = shorten("脳" * 99, 80), shorten("脳" * 98 + "x", 80)
    assert one.startswith("脳" * 20) and len(one.encode()) <= 80 and one != other
