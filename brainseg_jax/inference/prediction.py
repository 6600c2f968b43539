"""From a scan to labels in native space, by trained networks: standardised as their checkpoints say, segmented by windows, resampled.

What is resampled is every class's probability, linearly, and the likeliest is the label: borders of labels on a finer grid than the
networks' are smooth, where the nearest label would show its voxels. On a grid like the networks' it is their labels, to the voxel.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Integer, UInt

from brainseg_jax.core.errors import InputError
from brainseg_jax.data.labels import Table, freesurfer_ids, voxel_ids
from brainseg_jax.data.nifti import read
from brainseg_jax.inference import input_checks
from brainseg_jax.inference.predictor import Ids, Predictor, predictor
from brainseg_jax.inference.segmentation import prepare, segment
from brainseg_jax.pretrained import DEFAULT
from brainseg_jax.qc.findings import Flag, examine


class Prediction(NamedTuple):
    """`labels`: ids of `table`, 0 the background, on the scan's grid, which `affine` places. `volumes`: ml by structure's name, of
    its voxels; `soft_volumes`: the sum of its probability, which networks overstate where a structure has a few ml only.

    `flags`: reasons to look at the result, the worst first; none is no proof that it is right. `remarks`: what there is to say of how the
    scan was read, as that its s-form was not taken.
    """

    labels: Integer[np.ndarray, "x y z"]
    affine: Float[np.ndarray, "4 4"]
    volumes: dict[str, float]
    soft_volumes: dict[str, float]
    table: Table
    flags: list[Flag]
    remarks: list[str]


def predict(
    scan: Any,
    checkpoint: str | Path | Sequence[str | Path] | Predictor | None = None,
    *,
    also: Any = (),
    task: str = "",
    tta: bool = False,
    keep_small_components: bool = False,
    ids: str = "auto",
) -> Prediction:
    """Segments a scan: a file (.nii, .nii.gz, .mgz, .mgh), an image of nibabel's, or (voxels [x y z], affine), which takes their indices to
    RAS millimetres. `also`: another image of the same head, or a list of them, for a network that was trained on several, in the order of
    its channels; the result lies on the grid of `scan`.

    `checkpoint`: a folder or file, or several, an ensemble, or the name of a network that comes with the package, "t1" or, by
    default, "any"; for many scans give `prediction.predictor(checkpoint)`, which is loaded once. `task`: as of `Predictor.grouped`, by
    default all that it knows.
    `tta`: test-time augmentation by a left-right flip, which takes twice as long. `keep_small_components`: small connected components
    that lie apart from their structure stay (small_components.py says what becomes of them otherwise). `ids`: "freesurfer", "table" (the
    label table's own), or "auto": FreeSurfer's where every structure has one. Raises InputError, one line, for what is no MRI of a head and
    for what cannot be read.
    """
    if ids not in get_args(Ids):
        raise InputError(f"ids={ids!r} is unknown; use one of {', '.join(get_args(Ids))}")
    if not isinstance(checkpoint, Predictor):
        one = DEFAULT if checkpoint is None else checkpoint
        checkpoint = predictor([one] if isinstance(one, str | Path) else one)
    by = checkpoint.asked(task, tta, keep_small_components)
    table = output_table(by.table, ids)
    several = isinstance(also, list) or (isinstance(also, tuple) and not (also and isinstance(also[0], np.ndarray)))
    images = [scan, *(also if several else [also])]
    names = [str(image) if isinstance(image, str | Path) else f"also[{n - 1}]" if n else "scan" for n, image in enumerate(images)]
    by.check_images(len(images), names[0])
    scans = [read(image) if isinstance(image, str | Path) else input_checks.from_memory(image) for image in images]
    classes, ml, found = segment(by, ready := prepare(by, scans, names))
    input_checks.check_not_empty(by.table, ml, names[0])
    structures = [structure.name for structure in table.structures]
    volumes, soft = (dict(zip(structures, of[1:].tolist(), strict=True)) for of in (ml, found.volumes))
    affine = scans[0].affine
    flags = examine(classes, affine, by.table, by.cohort(), found.entropy).flags
    return Prediction(as_ids(classes, table), affine, volumes, soft, table, flags, ready.record["remarks"])


# ---- the steps


def output_table(table: Table, ids: Ids) -> Table:
    """The table with the ids that voxels get. Raises InputError for FreeSurfer's where structures have none, several, or share one."""
    own = voxel_ids(table)
    try:
        values = own if ids == "table" else freesurfer_ids(table)
        if len(set(values.tolist())) < len(values):
            raise InputError(f"label table {table.name} has two structures with one FreeSurfer id; write the table's own ids")
    except InputError:
        if ids == "freesurfer":
            raise
        values = own
    of = dict(zip(own.tolist(), values.tolist(), strict=True))
    return table._replace(structures=tuple(s._replace(id=of[s.id], partner=of[s.partner]) for s in table.structures))


def as_ids(classes: UInt[np.ndarray, "x y z"], table: Table) -> Integer[np.ndarray, "x y z"]:
    """Class numbers as the table's ids, in the smallest type that holds them all; of 16 bits the signed one, which more tools read."""
    ids = voxel_ids(table)
    return ids.astype(next(dtype for dtype in (np.uint8, np.int16, np.int32) if ids.max() <= np.iinfo(dtype).max))[classes]
