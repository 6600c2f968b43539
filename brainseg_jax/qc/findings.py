"""Findings on a label map: flags, each with a plain sentence, so that the cases that need review come first.

`measure` reads the voxels once; `flags` compares the measures with limits, or with a cohort if there is one. A flag is a reason to check,
not proof of an error, and the absence of flags is no proof of a correct result.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer
from scipy import ndimage

from brainseg_jax.data.labels import Table, connected_structures
from brainseg_jax.data.nifti import orientation

ALL = "All structures"  # the name of the whole segmentation in flags and cohorts; class 0 in measures
ENTROPY = "Entropy"  # the key of the mean entropy inside the brain in a cohort
COHORT = "cohort"  # the key of the cohort in a checkpoint's card
Z = 3.0  # standard deviations from the cohort's mean
FEWEST = 20  # subjects a cohort needs for its statistics to be used
# Limits without a cohort: just beyond the values of 155 subjects' label maps (141 of DLMUSE at 2 mm, 14 at 1 mm).
ASYMMETRY, ASYMMETRY_CSF = 0.45, 1.5  # ventricles and vessels: 1 % of subjects exceed it
OUTSIDE, OUTSIDE_ALL = 0.02, 0.002  # fraction outside the largest component; ventricles and vessels are unconnected in most subjects
NATS = 0.5  # mean entropy, that of 80 % to 20 % between two structures in every voxel
SERIOUS = 50.0  # a score: 21 subjects that t1 was not trained on have at most 6, images of no head over 100 with either network
WORST = 3.0  # the largest severity; it is 1 at a flag's threshold

# Kinds of flags, in the order of the report, with their descriptions.
KINDS = {
    "empty": "nothing was segmented",
    "absent": "a structure has no voxel, though the cohort, if there is one, says that people have it",
    "sides": "a left structure lies to the right of its partner",
    "edge": "a structure touches the edge of the image, so part of it may not have been scanned",
    "pieces": f"over {OUTSIDE:.0%} of a structure that is one piece in people (no ventricle, vessel or hypointensity), or "
    f"{OUTSIDE_ALL:.1%} of all together, lies outside its largest connected piece",
    "volume": f"a volume, scaled to the cohort's mean brain, or the brain itself, is {Z:g} standard deviations from the cohort's mean",
    "asymmetry": f"left and right differ by {Z:g} standard deviations from what the cohort has, or without one by over "
    f"{ASYMMETRY:.0%} of their mean ({ASYMMETRY_CSF:.0%} in ventricles and vessels)",
    "entropy": f"the network is unsure inside the brain: {Z:g} standard deviations more than in the cohort, or over {NATS:g} nats",
}
FACES = ("left", "right", "back", "front", "bottom", "top")
LETTERS = "LRPAIS"  # of FACES

PerClass = Float64[np.ndarray, "k"]
# By name (mean, standard deviation, number of subjects): ml of structures, and the other entries of `cohort_of`. May be lists of JSON.
Usual = Sequence[float | int]
Cohort = Mapping[str, Usual]


class Flag(NamedTuple):
    """A reason to check a structure (or ALL): one of KINDS, its severity, the value behind it, and a sentence.

    The severity is 1 at the threshold and at most WORST, times the number of structures concerned.
    """

    structure: str
    kind: str
    severity: float
    value: float
    words: str


class Measures(NamedTuple):
    """Measures of a label map by class, with the whole foreground as class 0; NaN for a class without voxels.

    ml: volume. centre: world mm. pieces: connected components (faces, edges or corners). outside: the fraction outside the largest.
    edge: cm² on each of the image's FACES.
    """

    ml: PerClass
    centre: Float64[np.ndarray, "k 3"]
    pieces: Int64[np.ndarray, "k"]
    outside: PerClass
    edge: Float64[np.ndarray, "k 6"]


class Findings(NamedTuple):
    """The findings on a label map. z: z-scores of volumes; z_scaled: after scaling to the cohort's mean brain; NaN without a cohort."""

    measures: Measures
    z: PerClass
    z_scaled: PerClass
    flags: list[Flag]

    @property
    def score(self) -> float:
        """The urgency of a review: the sum of severities, 0 without flags."""
        return sum((flag.severity for flag in self.flags), 0.0)


def examine(
    classes: Integer[np.ndarray, "x y z"],
    affine: Float[np.ndarray, "4 4"],
    table: Table,
    cohort: Cohort | None = None,
    entropy: float | None = None,
) -> Findings:
    """The findings on class numbers of a table. `entropy`: the mean over the brain's voxels of −Σ p ln p, in nats."""
    measures = measure(classes, affine, len(table.structures) + 1)
    z, z_scaled = z_scores(measures.ml, table, cohort or {})
    return Findings(measures, z, z_scaled, flags(measures, table, cohort, entropy))


def measure(classes: Integer[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"], k: int) -> Measures:
    """Measures of classes 1 to k − 1, and of all of them as class 0; `affine` maps voxels to world mm."""
    if classes.min() < 0 or classes.max() >= k:
        raise ValueError(f"classes {classes.min()} to {classes.max()} where 0 to {k - 1} are expected")
    voxel = abs(float(np.linalg.det(affine[:3, :3])))
    areas = voxel / np.linalg.norm(affine[:3, :3], axis=0) / 100
    ends = [(LETTERS.index(letter) ^ 1, LETTERS.index(letter)) for letter in orientation(affine)]  # faces before and behind each axis
    ml, outside, pieces = np.zeros(k), np.full(k, np.nan), np.zeros(k, np.int64)
    centre, edge = np.full((k, 3), np.nan), np.zeros((k, 6))
    boxes = ndimage.find_objects(classes, k - 1)
    whole = tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*filter(None, boxes), strict=True))
    for n, box in enumerate([whole or None, *boxes]):
        if box is None:
            continue
        mask = classes[box] == n if n else classes[box] > 0
        along = [mask.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
        count = int(along[0].sum())
        middle = [part.start + np.arange(len(line)) @ line / count for part, line in zip(box, along, strict=True)]
        ml[n] = count * voxel / 1000
        centre[n] = affine[:3, :3] @ middle + affine[:3, 3]
        for axis, (part, line) in enumerate(zip(box, along, strict=True)):
            edge[n, ends[axis][0]] = line[0] * areas[axis] * (part.start == 0)
            edge[n, ends[axis][1]] = line[-1] * areas[axis] * (part.stop == classes.shape[axis])
        parts, pieces[n] = ndimage.label(mask, np.ones((3, 3, 3)))
        outside[n] = 1 - np.bincount(parts.ravel())[1:].max() / count
    return Measures(ml, centre, pieces, outside, edge)


def z_scores(ml: PerClass, table: Table, cohort: Cohort) -> tuple[PerClass, PerClass]:
    """z-scores of each class's volume (0: all together) in the cohort: unscaled, and after scaling to the cohort's mean brain.

    NaN if a class is absent or not in the cohort. If the cohort lacks ALL, its sd is taken as the sum of the structures', an upper bound.
    """
    z, scaled = np.full((2, len(ml)), np.nan)
    known = [n for n, s in enumerate(table.structures, 1) if _usable(cohort.get(s.name))]
    if not known or not ml[known].sum():
        return z, scaled
    usual = {n: cohort[table.structures[n - 1].name] for n in known}
    means, sds, counts = zip(*usual.values(), strict=True)
    z[0] = scaled[0] = _deviation(ml[known].sum(), cohort.get(ALL, (sum(means), sum(sds), min(counts))))
    for n in known:
        if ml[n]:
            z[n] = _deviation(ml[n], usual[n])
            scaled[n] = _deviation(ml[n] * sum(means) / ml[known].sum(), usual[n])
    return z, scaled


def cohort_of(ml: Float[np.ndarray, "people k"], table: Table, entropy: Sequence[float] = ()) -> dict[str, list[float | int]]:
    """The cohort of subjects with these `Measures.ml` and mean entropies, ready for a model card (JSON).

    By name [mean, sd, subjects]: ml of ALL and of each structure that any subject has, asymmetry by the names of a pair, and ENTROPY.
    """
    pairs = {_pair(*names): [_asymmetry(*both) for both in ml[:, sides] if all(both)] for sides, names in _partners(table)}
    structures = {s.name: ml[:, n] for n, s in enumerate(table.structures, 1) if ml[:, n].any()}
    values = {ALL: ml[:, 1:].sum(axis=1)} | structures | pairs | {ENTROPY: entropy}
    return {name: [float(np.mean(v)), float(np.std(v, ddof=1)), len(v)] for name, v in values.items() if len(v) > 1}


def flags(found: Measures, table: Table, cohort: Cohort | None = None, entropy: float | None = None) -> list[Flag]:
    """The flags of a case, the worst first. An empty label map is as severe as the absence of every structure."""
    if not found.ml[0]:
        return [Flag(ALL, "empty", WORST * len(table.structures), 0.0, "Nothing was segmented.")]
    checks = [_absent(found, table, cohort), _sides(found, table), _edge(found, table), _pieces(found, table)]
    checks += [_volume(found, table, cohort or {}), _asymmetric(found, table, cohort or {}), _unsure(entropy, cohort or {})]
    return sorted(chain.from_iterable(checks), key=lambda flag: -flag.severity)


def _absent(found: Measures, table: Table, cohort: Cohort | None) -> Iterator[Flag]:
    for n, structure in enumerate(table.structures, 1):
        mean, sd, _ = (1, 0, 0) if cohort is None else cohort.get(structure.name, (0, 0, 0))
        if not found.ml[n] and mean > sd:
            yield Flag(structure.name, "absent", WORST, 0.0, f"{structure.name} is absent.")


def _sides(found: Measures, table: Table) -> Iterator[Flag]:
    """Partners are compared with each other along the world's x, so a head that is rotated, even by 80°, has its left on the left."""
    pairs = [(sides, names) for sides, names in _partners(table) if _side(names[0]) == "left" and found.ml[sides].all()]
    distances = {names: float(found.centre[right, 0] - found.centre[left, 0]) for (left, right), names in pairs}
    wrong = {names: mm for names, mm in distances.items() if mm < 0}
    if len(wrong) > max(1, len(distances) / 2):
        words = f"Left and right are exchanged: {len(wrong)} of {len(distances)} pairs lie on the wrong sides."
        yield Flag(ALL, "sides", WORST * len(wrong), float(len(wrong)), words)
        return
    for (left, _), mm in wrong.items():
        yield Flag(left, "sides", WORST, mm, f"{left} lies {-mm:.0f} mm to the right of its partner.")


def _edge(found: Measures, table: Table) -> Iterator[Flag]:
    for n, structure in enumerate(table.structures, 1):
        cm2 = found.edge[n]
        if cm2.any():
            faces = " and ".join(face for face, area in zip(FACES, cm2, strict=True) if area)
            words = f"{structure.name} touches the image's edge ({faces}), {cm2.sum():.1f} cm²."
            yield Flag(structure.name, "edge", _severity(cm2.sum()), float(cm2.sum()), words)


def _pieces(found: Measures, table: Table) -> Iterator[Flag]:
    """The whole foreground is expected to be connected, in any table."""
    limits = {0: OUTSIDE_ALL} | dict.fromkeys(connected_structures(table), OUTSIDE)
    for n, limit in limits.items():
        if found.outside[n] > limit:
            name, what = (table.structures[n - 1].name,) * 2 if n else (ALL, "The segmentation")
            words = f"{what} is in {found.pieces[n]} pieces; {found.outside[n]:.1%} of it lies outside the largest."
            yield Flag(name, "pieces", _severity(found.outside[n] / limit), float(found.outside[n]), words)


def _volume(found: Measures, table: Table, cohort: Cohort) -> Iterator[Flag]:
    _, scaled = z_scores(found.ml, table, cohort)
    for n, name in enumerate([ALL, *(s.name for s in table.structures)]):
        if abs(scaled[n]) > Z:
            size, sign = ("large", "+") if scaled[n] > 0 else ("small", "−")
            what = f"{name} is {size} for this brain" if n else f"All together are {size}"
            words = f"{what}: {found.ml[n]:.3g} ml, z = {sign}{abs(scaled[n]):.1f}."
            yield Flag(name, "volume", _severity(abs(scaled[n]) / Z), float(scaled[n]), words)


def _asymmetric(found: Measures, table: Table, cohort: Cohort) -> Iterator[Flag]:
    tissues = {s.name: s.tissue for s in table.structures}
    for sides, names in _partners(table):
        if not found.ml[sides].all():
            continue
        value, usual = _asymmetry(*found.ml[sides]), cohort.get(_pair(*names))
        if _usable(usual, signed=True):
            times = abs(value - usual[0]) / _spread(usual) / Z
        else:
            times = abs(value) / (ASYMMETRY_CSF if tissues[names[0]] == "csf" else ASYMMETRY)
        if times > 1:
            first, second = (f"{found.ml[n]:.3g}" for n in sides)
            words = f"{names[0]} has {first} ml and its partner {second} ml: they differ by {abs(value):.0%} of their mean."
            yield Flag(names[0], "asymmetry", _severity(times), float(value), words)


def _unsure(entropy: float | None, cohort: Cohort) -> Iterator[Flag]:
    if entropy is None:
        return
    usual = cohort.get(ENTROPY)
    times = _deviation(entropy, usual) / Z if _usable(usual) else entropy / NATS
    if times > 1:
        words = f"The network is unsure inside the brain: {entropy:.2f} nats a voxel on average."
        yield Flag(ALL, "entropy", _severity(times), float(entropy), words)


def _partners(table: Table) -> Iterator[tuple[list[int], tuple[str, str]]]:
    """Yields classes and names of each left-right pair of structures, the left one first if their names begin with a side."""
    number = {s.id: n for n, s in enumerate(table.structures, 1)}
    for n, structure in enumerate(table.structures, 1):
        other = number[structure.partner]
        if n < other:
            sides = [other, n] if _side(structure.name) == "right" else [n, other]
            yield sides, (table.structures[sides[0] - 1].name, table.structures[sides[1] - 1].name)


def _side(name: str) -> str:
    return name.partition(" ")[0].lower()


def _pair(left: str, right: str) -> str:
    return f"{left} : {right}"


def _asymmetry(left: float, right: float) -> float:
    return 2 * (left - right) / (left + right)


def _severity(times: float) -> float:
    """The severity of a value that is `times` its threshold."""
    return float(np.clip(times, 1, WORST))


def _usable(usual: Usual | None, signed: bool = False) -> bool:
    return bool(usual is not None and usual[2] >= FEWEST and usual[1] > 0 and (signed or usual[0] > 0))


def _spread(usual: Usual) -> float:
    """The sd of a new subject about a mean that is estimated from n subjects."""
    return usual[1] * math.sqrt(1 + 1 / usual[2])


def _deviation(value: float, usual: Usual) -> float:
    """The z-score on a logarithmic scale, on which volumes are symmetric: half the mean is as far away as double."""
    variance = math.log1p((_spread(usual) / usual[0]) ** 2)
    return (math.log(value / usual[0]) + variance / 2) / math.sqrt(variance)
