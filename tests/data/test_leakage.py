"""Leakage that names hide: who may be one person, and which files are one image."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data import leakage
from brainseg_jax.data.leakage import check_leakage
from brainseg_jax.data.manifest import Row


def rows(*people, split="train"):
    """A row for each "dataset/subject", of a file that is not there."""
    return [
        Row(subject, "", Path(f"/none/{i}.nii"), (), (), name, split)
        for i, (name, _, subject) in enumerate(person.rpartition("/") for person in people)
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("001", "1"),
        ("sub-01", "1"),
        ("SUB-02", "sub-2"),
        ("IXI/7", "ixi/007"),
        ("p7_a", "P07_A"),
        ("Bjørn é", unicodedata.normalize("NFD", "bjørn é")),
    ],
)
def test_one_person_in_two_spellings_is_told(one, other):
    (line,) = check_leakage(rows(one, other, "somebody else"), "people.tsv")
    assert (
        line.startswith('people.tsv: may be one person each, equal but for case, "sub-", leading zeros or accents') and "else" not in line
    )
    assert ascii(one.rpartition("/")[2]) in line and ascii(other.rpartition("/")[2]) in line


@pytest.mark.parametrize(("one", "other"), [("1", "10"), ("10", "100"), ("a1", "a1b"), ("A/1", "B/1"), ("sub-", "sub-1"), ("1.05", "1.50")])
def test_other_people_are_not(one, other):
    assert check_leakage(rows(one, other), "people.tsv") == []


def test_scans_of_one_person_are_not():
    assert check_leakage(rows("A/1", "A/1", "A/2"), "people.tsv") == []


def symbolic(old, new):
    new.symlink_to(old)


@pytest.mark.parametrize("copy", [symbolic, os.link, shutil.copyfile])
def test_one_image_under_two_names(tmp_path, copy):
    image, other, third = tmp_path / "a.nii", tmp_path / "b.nii", tmp_path / "c.nii"
    image.write_bytes(bytes(range(256)) * 1000)
    third.write_bytes(bytes(range(256)) * 999 + bytes(256))  # of one size, and equal in the middle
    copy(image, other)
    people = [
        row._replace(image=file) for row, file in zip(rows("x", "y", "z", "gone"), (image, other, third, tmp_path / "gone"), strict=True)
    ]
    (line,) = check_leakage(people, "people.tsv")
    assert line == f"people.tsv: the same image stands in 2 rows: {image} (x, train), {other} (y, train); keep one of them"
    apart = [people[0], people[1]._replace(split="test"), *people[2:]]
    with pytest.raises(InputError) as refusal:
        check_leakage(apart, "people.tsv")
    assert str(refusal.value) == (
        f"people.tsv: the same image is on two sides of the split: {image} (x, train), {other} (y, test); keep one of them, or give all of "
        "them one side"
    )
    assert len(check_leakage([apart[0]._replace(split="excluded"), *apart[1:]], "people.tsv")) == 1  # nobody trains on it


def test_further_channels_count_too(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.nii").write_bytes(b"same")
    one, other = rows("x", "y")
    with pytest.raises(InputError, match="on two sides"):
        check_leakage([one._replace(also=(tmp_path / "a.nii",)), other._replace(image=tmp_path / "b.nii", split="val")], "m")


def test_files_are_read_only_where_sizes_are_equal(tmp_path, monkeypatch):
    for i, name in enumerate("abc"):
        (tmp_path / name).write_bytes(bytes(i))
    monkeypatch.setattr(leakage, "_piece", None)
    assert check_leakage([row._replace(image=tmp_path / name) for row, name in zip(rows("x", "y", "z"), "abc", strict=True)], "m") == []


def test_labels_of_which_scans_are_made_are_on_one_side_with_their_image(tmp_path):
    """A person under two names: once as a scan with labels, once as labels only. On one side that may be on purpose."""
    for name in ("x.nii", "l.nii", "y.nii"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    shutil.copyfile(tmp_path / "l.nii", tmp_path / "again.nii")
    real = Row("1", "", tmp_path / "x.nii", (tmp_path / "l.nii",), ("seg35",), "A", "val")
    made = Row("2", "", tmp_path / "again.nii", (tmp_path / "again.nii",), ("seg35",), "B", "train", (), True)
    with pytest.raises(
        InputError, match=r"^people\.tsv: the same label map is on two sides of the split: .*x\.nii \(1, val\), .*again\.nii"
    ):
        check_leakage([real, made], "people.tsv")
    assert check_leakage([real, made._replace(split="val")], "people.tsv") == []
    # Scans of one head may have one label map, whichever sides they are on, as long as none is made of it.
    other = real._replace(subject="3", image=tmp_path / "y.nii", split="train")
    assert (
        check_leakage([real, other], "people.tsv")
        == check_leakage([real, other, made._replace(labels=(tmp_path / "y.nii",))], "people.tsv")
        == []
    )
