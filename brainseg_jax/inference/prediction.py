"""From a scan to labels in native space, by trained networks: standardised as their checkpoints say, segmented by windows, resampled.

What is resampled is every class's probability, linearly, and the likeliest is the label: borders of labels on a finer grid than the
networks' are smooth, where the nearest label would show its voxels. On a grid like the networks' it is their labels, to the voxel.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, UInt, UInt8
from scipy import ndimage

from brainseg_jax.config.recipes import TASKS
from brainseg_jax.core.errors import InputError, did_you_mean, first_few
from brainseg_jax.data.augment.prepare import as_float
from brainseg_jax.data.labels import SCHEMES, Table, freesurfer_ids, grouping, parse_table, read_table, swap, voxel_ids
from brainseg_jax.data.nifti import Scan, read
from brainseg_jax.data.preprocess import Spec, Standardized, spec_of, standardize_all
from brainseg_jax.inference import input_checks, native_space, network, sliding_window
from brainseg_jax.inference.small_components import relabel_small_components
from brainseg_jax.pretrained import DEFAULT, network_file
from brainseg_jax.qc.findings import COHORT, Cohort, Flag, examine
from brainseg_jax.weights import single_file

ONE = 255  # stands for probability 1

Ids = Literal["freesurfer", "table", "auto"]


class Predictor(NamedTuple):
    """An ensemble of networks (the mean of their probabilities), what they take, and what their classes are.

    `channels`: how many images of a subject they take, `called`: what these are, in their order, where the config said so.
    `table`: the classes that come out, `own`: those of the networks, both named for their task. `groups` adds the probabilities of the
    second up to those of the first, background included; None where the two are the same. `flip`: each network also sees the flipped
    image. `keep_small_components`: they keep their label (see small_components.py).
    """

    models: tuple[sliding_window.Model, ...]
    spec: Spec
    table: Table
    own: Table
    overlap: float
    blend: str
    cards: tuple[dict[str, Any], ...]
    groups: Float[np.ndarray, "k j"] | None = None
    flip: sliding_window.Flip | None = None
    keep_small_components: bool = False
    channels: int = 1
    called: tuple[str, ...] = ()

    def check_images(self, n: int, name: str) -> None:
        """Raises InputError, calling them `name`, for `n` images of a subject where the networks take more or fewer."""
        if n == self.channels:
            return
        taken = "one image" if self.channels == 1 else f"{self.channels} images"
        called = f" ({', '.join(self.called)}, in this order)" if self.called else ""
        ways = ("give the others with --also, or name them in the list, separated by ';'", "leave the others out")
        given = f"{n} {'is' if n == 1 else 'are'} given"
        raise InputError(f"{name}: the network was trained on {taken} a subject{called}, and {given}; {ways[n > self.channels]}")

    def trained_on(self) -> set[str]:
        """Hashes of the people that any of the networks, or the pretraining it began with, was trained on (`Row.hashed`)."""
        return {person for card in self.cards for person in (*card.get("subjects", ()), *card.get("subjects_before", ()))}

    def cohort(self) -> Cohort | None:
        """What is usual in people for the classes that come out, as the first card that knows it says; None where none does."""
        return next((card[COHORT][self.table.name] for card in self.cards if self.table.name in card.get(COHORT, ())), None)

    def asked(self, task: str, tta: bool, keep_small_components: bool) -> "Predictor":
        """The same grouped into a task, unless that is "", with left-right flips (`tta`), and with small components left as they are."""
        by = (self.grouped(task) if task else self)._replace(keep_small_components=keep_small_components)
        return by.with_flip() if tta else by

    def with_flip(self) -> "Predictor":
        """The same with every network seeing the scan twice, as it is and flipped, left and right structures changing places."""
        axis = next(axis for axis, letter in enumerate(self.spec.orientation) if letter in "LR")
        return self._replace(flip=sliding_window.Flip(axis, swap(self.own)))

    def grouped(self, task: str) -> "Predictor":
        """The same with the structures of a task ("skull", "four", "thirtythree"), or of a label table, by name or as a .tsv file.

        Of its structures those are left out that the networks' classes have no part in. Raises InputError for an unknown table, and where
        the networks do not tell apart what it does.
        """
        if task not in TASKS and task not in SCHEMES and not task.endswith(".tsv"):
            known = (*TASKS, *SCHEMES)
            raise InputError(f"--task {task!r} is unknown{did_you_mean(task, known)}; use one of {', '.join(known)}, or a .tsv file")
        table = read_table(TASKS.get(task, task))
        groups = grouping(self.own, table)
        if sided := [s.name for s in self.own.structures if len(groups[s.id]) > 1]:
            raise InputError(
                f"--task {task}: the networks do not tell the sides of {first_few(sided)} apart, and it does; choose a coarser one"
            )
        kept = tuple(s for s in table.structures if (s.id,) in groups.values())
        number = {(s.id,): n for n, s in enumerate(kept, 1)}
        of = [0, *(number.get(groups[s.id], 0) for s in self.own.structures)]
        return self._replace(table=Table(_task(table.name), kept), groups=np.eye(len(kept) + 1, dtype=np.float32)[of])


class SoftSegmentation(NamedTuple):
    """What networks see in a standardised scan.

    `soft`: on its grid the probability of each class, background first, in bytes: 255 stands for 1, and the likeliest class has one more
    than the others would, so that rounding makes no ties. `volumes`: ml of each class, the sum of its probability. `entropy`: −Σ p ln p in
    nats, the mean over voxels that are not background, NaN where all are.
    """

    soft: UInt8[np.ndarray, "k x y z"]
    volumes: Float[np.ndarray, "k"]
    entropy: float


class Segmented(NamedTuple):
    """`classes`: numbers of the predictor's table on the scan's own grid. `ml`: the volume of each as voxels count it. `found`: whence."""

    classes: UInt[np.ndarray, "x y z"]
    ml: Float[np.ndarray, "k"]
    found: SoftSegmentation


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


def predictor(checkpoints: Sequence[str | Path]) -> Predictor:
    """Reads checkpoints of fine-tuning; a name of NETWORKS is that network of the package (`network_file`).

    Raises InputError for none, for one that does not say what its classes are, and for two that do not belong together.
    """
    if not checkpoints:
        raise InputError("no checkpoint; give one, or several, an ensemble")
    checkpoints = [network_file(name) for name in checkpoints]
    models, cards, kinds = [], [], []
    for folder in checkpoints:
        loaded = network.load(folder)
        if "labels" not in loaded.card:
            raise InputError(f"{folder}: does not say what its classes are, as converted files do not; fine-tune it here, if only its head")
        models.append(loaded.model())
        cards.append(loaded.card)
        with single_file.reading(Path(folder)):
            table = parse_table(loaded.card["labels"], f"{folder}: its label table")._replace(name=_task(loaded.config.data.labels))
            kinds.append((spec_of(loaded.card), table, loaded.config))
            if len(table.structures) + 1 != loaded.config.classes:
                what = f"{len(table.structures)} structures for {loaded.config.classes - 1} classes"
                raise InputError(f"{folder}: its label table has {what}; use a checkpoint as its run wrote it")
            _check_lists(loaded.card)
    spec, table, config = kinds[0]
    images = config.channels, tuple(config.data.channel_names)
    for folder, (other_spec, other_table, other) in zip(checkpoints, kinds, strict=True):
        same = other_spec == spec, other_table.structures == table.structures, (other.channels, tuple(other.data.channel_names)) == images
        if not all(same):
            what = ("standardisation", "labels", "channels")[same.index(False)]
            raise InputError(f"{folder}: was trained with other {what} than {checkpoints[0]}; predict with each by itself")
    settings, taken = config.segmentation, {"channels": images[0], "called": images[1]}
    return Predictor(tuple(models), spec, table, table, settings.overlap, settings.blend, tuple(cards), **taken)


def _check_lists(card: dict[str, Any]) -> None:
    """Raises ValueError where people or cohorts are not as `Predictor` and `quality` take them."""
    people = (*card.get("subjects", ()), *card.get("subjects_before", ()))
    usual = [value for cohort in card.get(COHORT, {}).values() for value in cohort.values()]
    if not all(isinstance(person, str) for person in people):
        raise ValueError("subjects are no texts")
    if not all(isinstance(one, list) and [isinstance(n, int | float) for n in one] == [True] * 3 for one in usual):
        raise ValueError(f"{COHORT} has other than means, deviations and counts")


def segment_scan(by: Predictor, scans: Sequence[Scan], names: Sequence[str]) -> UInt[np.ndarray, "x y z"]:
    """Class numbers of the predictor's table on the grid of a subject's first image; background where the window did not reach.

    `names` are what errors call the images. Raises InputError for images that cannot be standardised, or are not as many as channels.
    """
    by.check_images(len(scans), names[0])
    return segment(by, standardize_all(scans, by.spec, names)).classes


# ---- the steps


def prepare(by: Predictor, scans: Sequence[Scan], names: Sequence[str]) -> Standardized:
    """A subject's images as the networks take them. Raises InputError, calling them by `names`, for what cannot be MRI of a head."""
    by.check_images(len(scans), names[0])
    for scan, name in zip(scans, names, strict=True):
        input_checks.check_head_scan(scan, name)
    return standardize_all(scans, by.spec, names)


def segment(by: Predictor, ready: Standardized) -> Segmented:
    """Labels of a standardised scan on the scan's own grid, whatever they are: see `screening.refuse_empty`."""
    found = segment_grid(by, ready)
    classes = native_labels(by, found, ready)
    return Segmented(classes, voxel_volumes(classes, by.table, np.array(ready.record["source_affine"])), found)


def compile_ahead(by: Predictor) -> None:
    """Compiles the networks, which `find` would do with the first scan."""
    like = jax.ShapeDtypeStruct((*by.spec.size, by.channels), np.float32)
    sliding_window.compile_ahead(by.models, like, overlap=by.overlap, blend=by.blend, flip=by.flip)


def segment_grid(by: Predictor, ready: Standardized) -> SoftSegmentation:
    """What the networks see."""
    return segment_grid_each([by], ready)[0]


def segment_grid_each(groupings: Sequence[Predictor], ready: Standardized) -> list[SoftSegmentation]:
    """What the same networks see, grouped in several ways (`Predictor.grouped`), for one look."""
    by = groupings[0]
    volume = as_float(jnp.asarray(ready.image).reshape(1, *ready.image.shape[:3], -1))[0]
    soft = [np.empty((len(one.table.structures) + 1, *ready.image.shape[:3]), np.uint8) for one in groupings]
    unsure: list[list[np.ndarray]] = [[] for _ in groupings]

    def keep(rows: slice, probabilities: jax.Array) -> None:
        for one, maps, nats in zip(groupings, soft, unsure, strict=True):
            grouped = probabilities if one.groups is None else probabilities @ one.groups
            maps[:, rows] = np.moveaxis(np.asarray(_in_bytes(grouped)), -1, 0)
            nats.append(np.asarray(_entropy(grouped)))

    seen = sliding_window.segment(by.models, volume, overlap=by.overlap, blend=by.blend, flip=by.flip, each=keep)
    ml, found = abs(np.linalg.det(ready.affine[:3, :3])) / 1000, []
    for one, maps, nats in zip(groupings, soft, unsure, strict=True):
        total, voxels = np.sum(nats, axis=0, dtype=np.float64)
        volumes = seen.volumes if one.groups is None else seen.volumes @ one.groups
        found.append(SoftSegmentation(maps, volumes * ml, float(total / voxels) if voxels else float("nan")))
    return found


def native_labels(by: Predictor, found: SoftSegmentation, ready: Standardized) -> UInt[np.ndarray, "x y z"]:
    """The classes that a predictor gives the voxels of the scan's own grid, without small components unless it keeps them."""
    classes = on_scan(found, ready)
    if not by.keep_small_components:
        relabel_small_components(classes, by.table)
    return classes


def on_scan(found: SoftSegmentation, ready: Standardized) -> UInt[np.ndarray, "x y z"]:
    """The likeliest class of every voxel of the scan's own grid, 0 where the standardised window did not reach."""
    by, classes = native_space.grid_transform(ready), len(found.soft)
    # To be the likeliest between eight voxels, a class needs in one of them an equal share of 1, and an eighth of what the likeliest has in
    # each of them: so most classes are looked at in a small box only.
    least = ndimage.minimum_filter(found.soft.max(axis=0), 3, mode="constant") // 8
    least = np.maximum(np.maximum(least, (ONE - 1) // classes), 1) - 1
    boxes = [native_space.bounding_box(soft > least) for soft in found.soft[1:]]
    somewhere = [box for box in boxes if box]
    labels = np.zeros(ready.record["source_shape"], np.min_scalar_type(classes - 1))
    if not somewhere:
        return labels
    best = np.zeros(labels.shape, np.float32)
    whole = tuple(slice(min(b[axis].start for b in somewhere), max(b[axis].stop for b in somewhere)) for axis in range(3))
    for number, box in enumerate([whole, *boxes]):
        if box:
            part, values = native_space.resample_to_native(found.soft[number], box, by)
            np.copyto(labels[part], labels.dtype.type(number), where=values > best[part])
            np.maximum(best[part], values, out=best[part])
    return labels


def soft_maps(found: SoftSegmentation, ready: Standardized) -> Iterator[UInt8[np.ndarray, "x y z"]]:
    """The probability of each class on the scan's own grid, 255 standing for 1, background first; one at a time, since each is large."""
    by = native_space.grid_transform(ready)
    for number, soft in enumerate(found.soft):
        # Where the window did not reach there is background.
        out = np.full(ready.record["source_shape"], 0 if number else ONE, np.uint8, order="F")  # as files have it
        if box := native_space.bounding_box(soft > 0) if number else tuple(slice(0, n) for n in soft.shape):
            part, values = native_space.resample_to_native(soft, box, by)
            out[part] = np.rint(values)
        yield out


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


def voxel_volumes(classes: UInt[np.ndarray, "x y z"], table: Table, affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "k"]:
    """The volume of each class in ml, as voxels count it."""
    return np.bincount(classes.ravel(), minlength=len(table.structures) + 1) * abs(np.linalg.det(affine[:3, :3])) / 1000


@jax.jit
def _in_bytes(probabilities: Float[jax.Array, "r y z k"]) -> UInt8[jax.Array, "r y z k"]:
    winner = jax.nn.one_hot(jnp.argmax(probabilities, axis=-1), probabilities.shape[-1])
    return (jnp.rint((ONE - 1) * probabilities) + winner).astype(jnp.uint8)


@jax.jit
def _entropy(probabilities: Float[jax.Array, "r y z k"]) -> Float[jax.Array, "2"]:
    """The sum of the entropies of voxels that are not background, and how many they are."""
    inside = probabilities[..., 0] < jnp.max(probabilities, axis=-1)
    # As jax.scipy.special.entr, in half the time; the smallest number is for 0, whose product with its logarithm is 0.
    nats = -jnp.sum(probabilities * jnp.log(jnp.maximum(probabilities, 1e-30)), axis=-1)
    return jnp.stack([jnp.sum(nats, where=inside), jnp.sum(inside, dtype=nats.dtype)])


def _task(labels: str) -> str:
    """What the labels of a config are called: the task that they are of, or else the table."""
    tasks = {table: task for task, table in TASKS.items()}
    return tasks.get(labels, Path(labels).stem or "labels")
