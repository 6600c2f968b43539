"""Shares of structures, computed by hand."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data.labels import read_table
from brainseg_jax.data.nifti_write import write

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # as it is for the script itself
label_sources = importlib.import_module("label_sources")


def test_shares_of_the_brain_without_its_csf_and_each_person_once(tmp_path):
    ids = np.zeros((4, 4, 4), np.uint8)
    ids[0], ids[1], ids[2, :2] = 2, 41, 24  # 16, 16 and 8 voxels
    lines = ["subject\tsession\timage\tlabels\tscheme\tsource"]
    for person, n in (("a", "1"), ("a", "2"), ("b", "3")):
        write(tmp_path / f"{n}.nii.gz", ids, np.eye(4))
        lines.append(f"{person}\t{n}\t\t{n}.nii.gz\tfreesurfer\tsynth")
    (tmp_path / "people.tsv").write_text("\n".join(lines) + "\n")
    table = read_table("intracranial")
    found, other = label_sources.shares(tmp_path / "people.tsv", table)
    np.testing.assert_array_equal(found, other)
    names = {s.name: value for s, value in zip(table.structures, found, strict=True)}
    assert names["Left cerebral white matter"] == names["Right cerebral white matter"] == 0.5
    assert names["CSF around the brain"] == 0.25 and sum(found) == 1.25


def test_a_table_that_people_wrote_is_kept_too_and_what_is_no_text_is_one_line(tmp_path):
    file = tmp_path / "report.md"
    file.write_text("# Ours\n\n| a |\n|---|\n| 1 |\n\nWhat I say.\n\n| mine |\n|---|\n\nend\n")
    assert label_sources.below_table(file) == "\nWhat I say.\n\n| mine |\n|---|\n\nend\n"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"report\.md: is no text"):
        label_sources.below_table(file)


def test_what_people_wrote_below_the_table_is_kept(tmp_path, monkeypatch, capsys):
    lines = ["subject\tsession\timage\tlabels\tscheme\tsource"]
    for share, person in enumerate("ab", 2):
        write(tmp_path / f"{person}.nii.gz", np.where(np.indices((4, 4, 4))[0] < share, 2, 41).astype(np.uint8), np.eye(4))
        lines.append(f"{person}\t\t\t{person}.nii.gz\tfreesurfer\tsynth")
    (tmp_path / "people.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "argv", ["x", *[str(tmp_path / "people.tsv")] * 2, "--out", str(tmp_path / "report")])
    assert label_sources.main() == 0
    first, words = (tmp_path / "report.md").read_text(), "\nThey are the same.\n\nAll of them.\n"
    assert first.splitlines()[-1].startswith("| ")
    (tmp_path / "report.md").write_text(first.replace("ratio", "old") + words)
    assert label_sources.main() == 0 and (tmp_path / "report.md").read_text() == first + words


def test_too_few_people_and_labels_without_a_scheme_are_one_line(tmp_path):
    table, at = read_table("intracranial"), tmp_path / "people.tsv"
    at.write_text("subject\timage\tlabels\tscheme\na\ta.nii.gz\ta_seg.nii.gz\tfreesurfer\n")
    with pytest.raises(InputError, match=r"people\.tsv: 1 people have labels; give two or more"):
        label_sources.shares(at, table)
    at.write_text("subject\timage\tlabels\tscheme\na\ta.nii.gz\ta_seg.nii.gz\t\nb\tb.nii.gz\tb_seg.nii.gz\t\n")
    with pytest.raises(InputError, match="fill in the column scheme"):
        label_sources.shares(at, table)
