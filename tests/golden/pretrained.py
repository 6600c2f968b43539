"""What the networks that come with the package reach on the MNI template, which none was trained on; run as a script it is written anew.

Dice against the template's aseg, grouped into the paper's structures, at 1 mm; and of the whole brain.
"""

import csv
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import brainseg_jax
from brainseg_jax.core.files import write_table
from brainseg_jax.data.labels import lookup, read_table
from brainseg_jax.data.nifti import read_labels
from brainseg_jax.evaluation.metrics import score
from brainseg_jax.pretrained import NETWORKS

FILE = Path(__file__).with_suffix(".tsv")
SAMPLE = Path(str(resources.files("brainseg_jax.data") / "sample_files"))
HEAD = SAMPLE / "mni_sym09c_T1_head.nii.gz"
REFERENCES = (("brain", "mni_sym09c_brainmask.nii.gz", "brain"), ("seg33", "mni_sym09c_aseg.nii.gz", "freesurfer"))


def dice_of(found: Any) -> dict[str, float]:
    """Dice by structure of a prediction for HEAD; of structures that aseg has."""
    out = {}
    for target, file, scheme in REFERENCES:
        table, reference = read_table(target), read_labels(SAMPLE / file).voxels
        classes = lookup(found.labels, found.table, table), lookup(reference, read_table(scheme), table)
        dice = score(*classes, len(table.structures) + 1, (1.0, 1.0, 1.0), ("dice",))["dice"][1:]
        out |= {s.name: float(value) for s, value in zip(table.structures, dice, strict=True) if not np.isnan(value)}
    return out


def recorded(network: str) -> dict[str, float]:
    """What was written of a network."""
    with FILE.open() as lines:
        return {row["structure"]: float(row[network]) for row in csv.DictReader(lines, delimiter="\t")}


def main() -> int:
    """Segments the template by each network and writes the table."""
    reached = [dice_of(brainseg_jax.predict(HEAD, network)) for network in NETWORKS]
    write_table(FILE, ("structure", *NETWORKS), ((name, *(f"{one[name]:.3f}" for one in reached)) for name in reached[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
