"""Heads altered as scans differ, heads made of label maps, and what networks reach on them: what the scripts on robustness and on
candidates share."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

from brainseg_jax.config.recipes import TASKS
from brainseg_jax.config.resolve import of_file
from brainseg_jax.core.errors import InputError
from brainseg_jax.data.labels import HEAD, Table, lookup, missing, read_table, voxel_ids
from brainseg_jax.data.manifest import Row
from brainseg_jax.data.nifti import Scan, read, read_labels, reorient
from brainseg_jax.data.preprocess import on_grid, spec, standardize, standardize_labels
from brainseg_jax.data.synthesis.generator import generator, tissues_of
from brainseg_jax.data.synthesis.priors import Prior
from brainseg_jax.evaluation.metrics import score
from brainseg_jax.inference.predictor import Predictor
from brainseg_jax.inference.segmentation import prepare, segment

RECIPE = str(Path(__file__).parents[1] / "configs" / "finetune_unet.py:thirtythree,any")  # whose scans are made


class Head(NamedTuple):
    """Intensities and label ids on one grid, whose first axis goes to the right, second to the front, third upwards."""

    voxels: np.ndarray
    labels: np.ndarray
    affine: np.ndarray


def turned(head: Head, rng: np.random.Generator) -> Head:
    """Lying askew in the scanner: 15 degrees to a side and 15 back, resampled."""
    a, b = np.deg2rad(15), np.deg2rad(-15)
    about_y = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
    about_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    millimetres = np.linalg.norm(head.affine[:3, :3], axis=0)
    turn = np.array(about_y) @ about_x * millimetres / millimetres[:, None]
    middle = (np.array(head.voxels.shape) - 1) / 2
    voxels, labels = (
        ndimage.affine_transform(a, turn, middle - turn @ middle, order=order)
        for a, order in ((head.voxels.astype(np.float32), 1), (head.labels, 0))
    )
    return Head(voxels, labels, head.affine)


def stored_otherwise(head: Head, rng: np.random.Generator) -> Head:
    """Sagittal slices, the first one on the left, the first row on top."""
    return pointing("AIR", *head)


def thick(head: Head, rng: np.random.Generator) -> Head:
    """Axial slices three times as thick: each the mean of three, with the labels of the middle one."""
    n = head.voxels.shape[2] // 3 * 3
    step = np.diag([1.0, 1.0, 3.0, 1.0])
    step[2, 3] = 1
    voxels = head.voxels[..., :n].reshape(*head.voxels.shape[:2], -1, 3).mean(axis=3)
    return Head(voxels, head.labels[..., 1:n:3], head.affine @ step)


def cut(head: Head, rng: np.random.Generator) -> Head:
    """Without what lies lower than 20 mm above the lowest labelled voxel."""
    lowest = np.flatnonzero(head.labels.any(axis=(0, 1)))[0] + round(20 / np.linalg.norm(head.affine[:3, 2]))
    move = np.eye(4)
    move[2, 3] = lowest
    return Head(head.voxels[..., lowest:], head.labels[..., lowest:], head.affine @ move)


def noisy(head: Head, rng: np.random.Generator) -> Head:
    """Rician noise, sigma a tenth of the brightest (99th percentile)."""
    sigma = 0.1 * np.percentile(head.voxels, 99)
    real, imaginary = rng.normal(0, sigma, (2, *head.voxels.shape))
    return head._replace(voxels=np.hypot(head.voxels + real, imaginary))


def shaded(head: Head, rng: np.random.Generator) -> Head:
    """A coil's shading: 2.7 times as bright at the back and below as in front and above."""
    y, z = np.meshgrid(*(np.linspace(0.5, -0.5, n) for n in head.voxels.shape[1:]), indexing="ij")
    return head._replace(voxels=head.voxels * np.exp((y + z) / 2))


def flat(head: Head, rng: np.random.Generator) -> Head:
    """Less contrast among what is bright: values to the power 0.6."""
    return head._replace(voxels=np.maximum(head.voxels, 0) ** 0.6)


def steep(head: Head, rng: np.random.Generator) -> Head:
    """More of it: values to the power 1.6."""
    return head._replace(voxels=np.maximum(head.voxels, 0) ** 1.6)


def stripped(head: Head, rng: np.random.Generator) -> Head:
    """Without its skull: what is labelled, and 2 voxels around it."""
    return head._replace(voxels=head.voxels * ndimage.binary_dilation(head.labels > 0, iterations=2))


def second_scanner(head: Head, rng: np.random.Generator) -> Head:
    """What another scanner might have made of it: another contrast curve, a coil that shades by 3 to 1 across the brain, slices of 4 to 6
    mm across one of the axes, interpolated, and Rician noise of 0.06 of the brightest."""
    top = np.percentile(head.voxels, 99.5)
    rises = np.exp(rng.uniform(-0.7, 0.7, 4))
    curve = PchipInterpolator(np.linspace(0, 1, 5), np.append(0, np.cumsum(rises) / rises.sum()))
    voxels = curve(np.clip(head.voxels / top, 0, 1))
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in voxels.shape), indexing="ij", sparse=True)
    shade = sum(c * term for c, term in zip(rng.normal(size=9), (x, y, z, x * x, y * y, z * z, x * y, y * z, z * x), strict=True))
    voxels = voxels * np.exp(shade * np.log(3) / np.ptp(shade[head.labels > 0]))
    axis, thickness = rng.integers(3), rng.uniform(4, 6)
    # A slice's profile as a Gaussian, whose full width at half its height is 2.355 standard deviations.
    voxels = ndimage.gaussian_filter1d(voxels, thickness / 2.355 / np.linalg.norm(head.affine[:3, axis]), axis)
    real, imaginary = rng.normal(0, 0.06, (2, *voxels.shape))
    return head._replace(voxels=np.hypot(voxels + real, imaginary))


def faceless(head: Head, rng: np.random.Generator) -> Head:
    """Without what lies before and below a plane that touches the brain, 45 degrees from level."""
    _, y, z = np.meshgrid(*(np.arange(n) for n in head.voxels.shape), indexing="ij", sparse=True)
    ahead = np.broadcast_to(y - z, head.voxels.shape)
    return head._replace(voxels=head.voxels * (ahead <= ahead[head.labels > 0].max()))


def as_flair(head: Head, rng: np.random.Generator) -> Head:
    """Grey matter brightest, fluid dark."""
    return _recoloured(head, fluid=0.15, grey=1.0, white=0.75)


def as_t2(head: Head, rng: np.random.Generator) -> Head:
    """Fluid brightest, white matter dark."""
    return _recoloured(head, fluid=1.0, grey=0.6, white=0.4)


def _recoloured(head: Head, fluid: float, grey: float, white: float) -> Head:
    """The 5th, 45th and 90th percentile of what is labelled, about a T1's fluid, grey and white matter, in other values."""
    inside = head.voxels[head.labels > 0].astype(np.float64)
    low, middle, high = np.percentile(inside, (5, 45, 90))
    values = np.interp(head.voxels, [0, low, middle, high, 1.5 * high], [0, fluid, grey, white, white])
    return head._replace(voxels=values)


def head_of(row: Row) -> tuple[Head, Table]:
    """A row's scan with its labels, pointing to "RAS", and the table of the labels."""
    scan = read(row.image)
    labels = on_grid(read_labels(row.labels[0]), scan.voxels.shape, scan.affine, str(row.labels[0]))
    return pointing("RAS", scan.voxels, labels, scan.affine), read_table(row.scheme[0])


def made(row: Row, draw: int, prior: Prior | None) -> Head:
    """A scan made of a label map as training makes them, on the map's own grid, of any contrast or as the prior says.

    Whole heads in dark air: to lose the skull is another shift, and what the window of 2 mm is laid around should not be chance.
    """
    scan = reorient(read_labels(row.labels[0]), "RAS")
    config = of_file(RECIPE)
    config.data.spacing = float(np.linalg.norm(scan.affine[:3, :3], axis=0).mean())
    config.synth.strip.chance = config.synth.face.chance = config.synth.air_noise.chance = 0.0
    config.synth.prior.share = 1.0
    classes = lookup(scan.voxels, read_table(row.scheme[0]), read_table(HEAD), str(row.labels[0]))
    make = generator(config, read_table("intracranial"))._replace(prior=prior)
    image, _ = jax.jit(make.whole_scan)(jax.random.fold_in(jax.random.key(int(row.hashed[:7], 16)), draw), classes)
    return Head(np.asarray(image[..., 0]), scan.voxels, scan.affine)


def check_people(people: int | None) -> None:
    """Raises InputError where fewer than one are asked for."""
    if people is not None and people < 1:
        raise InputError(f"--people {people}: give a whole number above 0")


def t1_prior(rows: Sequence[Row]) -> Prior:
    """What tissues look like in those scans of these rows that have them, as training takes them; what none has may look like anything."""
    head, values = read_table(HEAD), []
    tissues = tissues_of(head)
    for row in rows:
        ready = standardize(read(row.image), spec("default", 2.0, (96, 96, 96)), str(row.image))
        labels = standardize_labels(read_labels(row.labels[0]), ready.record, str(row.labels[0]))
        of = tissues.of[lookup(labels, read_table(row.scheme[0]), head, str(row.labels[0]))]
        inside = [
            np.asarray(ready.image).reshape(of.shape)[of == tissue] / 255 if tissue else np.array([]) for tissue in range(tissues.count)
        ]
        values.append([(part.mean(), part.std()) if part.size else (np.nan, np.nan) for part in inside])
    found = np.ma.masked_invalid(np.moveaxis(np.array(values), 2, 0))
    return Prior(*(np.stack([of.mean(axis=0).filled(np.nan), of.std(axis=0).filled(np.nan)]) for of in found))


def pointing(codes: str, voxels: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> Head:
    """Both on one grid with its axes pointing to `codes`."""
    image, map = (reorient(Scan(array, affine), codes) for array in (voxels, labels))
    return Head(image.voxels, map.voxels, image.affine)


def judged(by: Predictor, head: Head, source: Table, name: str) -> dict[str, float]:
    """Dice of each task, the mean of the structures that the labels have."""
    scan = Scan(head.voxels.astype(np.float32), head.affine)
    found = voxel_ids(by.table)[segment(by, prepare(by, [scan], [name])).classes]
    means = {}
    for task, table in TASKS.items():
        table = read_table(table)
        lacking = {s.name for s in missing(source, table)} | {s.name for s in missing(by.table, table)}
        expected, got = lookup(head.labels, source, table, name), lookup(found, by.table, table)
        spacing = tuple(np.linalg.norm(head.affine[:3, :3], axis=0).tolist())
        dice = score(got, expected, len(table.structures) + 1, spacing, ("dice",))["dice"][1:]
        means[task] = float(np.nanmean([d for s, d in zip(table.structures, dice, strict=True) if s.name not in lacking]))
    return means
