"""Shares of structures, computed by hand."""

import importlib
import sys
from pathlib import Path

import numpy as np

from brainseg_jax.data.labels import read_table
from brainseg_jax.data.nifti import write

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # as it is for the script itself
label_sources = importlib.import_module("label_sources")


def test_shares_of_the_brain_without_its_csf_and_each_person_once(tmp_path):
    ids = np.zeros((4, 4, 4), np.uint8)
    ids[0], ids[1], ids[2, :2] = 2, 41, 24  # 16, 16 and 8 voxels
    lines = ["subject\tsession\timage\tlabels\tscheme\tsource"]
    for n in ("1", "2"):
        write(tmp_path / f"{n}.nii.gz", ids, np.eye(4))
        lines.append(f"a\t{n}\t\t{n}.nii.gz\tfreesurfer\tsynth")
    (tmp_path / "people.tsv").write_text("\n".join(lines) + "\n")
    table = read_table("intracranial")
    (found,) = label_sources.shares(tmp_path / "people.tsv", table)
    names = {s.name: value for s, value in zip(table.structures, found, strict=True)}
    assert names["Left cerebral white matter"] == names["Right cerebral white matter"] == 0.5
    assert names["CSF around the brain"] == 0.25 and sum(found) == 1.25
