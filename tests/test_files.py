"""A file is the old one or the new one, never half of either."""

import pytest

from brainseg_jax.files import whole


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
