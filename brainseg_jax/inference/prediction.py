"""`brainseg_jax.predict`: the segmentation of one scan, from a file or from memory, in native space."""

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
    """`labels`: ids of `table`, 0 for the background, on the scan's grid with its `affine`. `volumes`: ml of each structure's voxels;
    `soft_volumes`: ml by the sum of its probability, which overestimates structures of a few ml.

    `flags`: reasons to check the result, the worst first; none does not prove that it is right. `remarks`: notes on how the scan was read,
    e.g. that its s-form was not used.
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
    """The segmentation of a scan: a file (.nii, .nii.gz, .mgz, .mgh), a nibabel image, or (voxels [x y z], affine to RAS millimetres).
    `also`: a further image of the subject, or a list of them in the order of the channels, for a network with several channels; the result
    is on the grid of `scan`.

    `checkpoint`: a folder or file, a list of them (an ensemble), or a network of the package, "t1" or "any" (the default); for many scans
    give `predictor(checkpoint)` of inference/predictor.py, which is loaded once. `task`: the structures, as for `Predictor.grouped`; by
    default all of the network's. `tta`: test-time augmentation by a left-right flip, which takes twice as long. `keep_small_components`:
    keeps small connected components apart from their structure (otherwise relabelled, see small_components.py). `ids`: "freesurfer",
    "table" (the label table's own), or "auto": FreeSurfer's if every structure has one. Raises InputError, in one line, for a file that
    cannot be read and for what is no MRI of a head.
    """
    if ids not in get_args(Ids):
        raise InputError(f"ids={ids!r} is unknown; use one of {', '.join(get_args(Ids))}")
    if not isinstance(checkpoint, Predictor):
        checkpoint = DEFAULT if checkpoint is None else checkpoint
        checkpoint = predictor([checkpoint] if isinstance(checkpoint, str | Path) else checkpoint)
    by = checkpoint.asked(task, tta, keep_small_components)
    table = output_table(by.table, ids)
    several = isinstance(also, list) or (isinstance(also, tuple) and not (also and isinstance(also[0], np.ndarray)))
    images = [scan, *(also if several else [also])]
    names = [str(image) if isinstance(image, str | Path) else f"also[{n - 1}]" if n else "scan" for n, image in enumerate(images)]
    by.check_images(len(images), names[0])
    scans = [read(image) if isinstance(image, str | Path) else input_checks.from_memory(image) for image in images]
    ready = prepare(by, scans, names)
    classes, ml, soft = segment(by, ready)
    input_checks.check_not_empty(by.table, ml, names[0])
    structures = [structure.name for structure in table.structures]
    volumes, soft_volumes = (dict(zip(structures, values[1:].tolist(), strict=True)) for values in (ml, soft.volumes))
    affine = scans[0].affine
    flags = examine(classes, affine, by.table, by.cohort(), soft.entropy).flags
    return Prediction(as_ids(classes, table), affine, volumes, soft_volumes, table, flags, ready.record["remarks"])


def output_table(table: Table, ids: Ids) -> Table:
    """The table with the ids to write. Raises InputError for FreeSurfer's if structures have none, several, or share one."""
    own = voxel_ids(table)
    try:
        values = own if ids == "table" else freesurfer_ids(table)
        if len(set(values.tolist())) < len(values):
            raise InputError(f"label table {table.name} has two structures with one FreeSurfer id; write the table's own ids")
    except InputError:
        if ids == "freesurfer":
            raise
        values = own
    new = dict(zip(own.tolist(), values.tolist(), strict=True))
    return table._replace(structures=tuple(s._replace(id=new[s.id], partner=new[s.partner]) for s in table.structures))


def as_ids(classes: UInt[np.ndarray, "x y z"], table: Table) -> Integer[np.ndarray, "x y z"]:
    """The table's ids of class numbers, in the smallest of uint8, int16 (read by more tools than uint16) and int32 that holds them."""
    ids = voxel_ids(table)
    return ids.astype(next(dtype for dtype in (np.uint8, np.int16, np.int32) if ids.max() <= np.iinfo(dtype).max))[classes]
