"""A sample cohort for trying the software without a download: random deformations of one embedded head, the MNI average.

The recipe (smooth random warp, random contrast, bias field, noise, resolution) is the usual one of MRI augmentation, as in SynthSeg
(Billot et al. 2023), but starts from the template's intensities instead of drawing a Gaussian for each label.
"""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from scipy import ndimage
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import write_text
from brainseg_jax.core.process_pool import map_in_processes
from brainseg_jax.data.manifest import Row, write_manifest
from brainseg_jax.data.nifti import Scan, read, read_labels, reorient
from brainseg_jax.data.nifti_write import write
from brainseg_jax.data.preprocess import along_axis

VERSION = 1  # of the recipe: raise it when the same seed gives other voxels
NOTICE = (
    "SAMPLE DATA: every head here is ONE anatomy, the MNI ICBM152 2009c template (an average of many people), deformed and recoloured; "
    "it is for trying the software and is NO EVIDENCE ABOUT ACCURACY. Template: Copyright (C) 1993-2004 Louis Collins, McConnell Brain "
    "Imaging Centre, Montreal Neurological Institute, McGill University (terms in COPYING_MNI); labels from CerebrA (Manera et al. 2020)."
)

FILES = ("mni_sym09c_T1_head.nii.gz", "mni_sym09c_aseg.nii.gz", "mni_sym09c_brainmask.nii.gz")
FIELD_MM = 4.0  # distance of the nodes of deformation and bias; both are smooth over 25 mm and more
VENTRICLES = (4, 43)
PULL_MM = 2.0  # distance of the nodes of the field that widens ventricles
LARGER = 1.06  # linear size of the template over a typical head: its brain has 1900 ml, a typical one about 1500 with CSF
WHITE = 175.0  # grey level of the template's white matter
# Typical scans: voxel edges in mm (right, anterior, superior), their probabilities, and the order of axes on disk.
VOXELS = ((1.0, 1.0, 1.0), (1.2, 1.2, 1.2), (1.0, 1.0, 2.0), (1.3, 1.0, 1.0))
VOXELS_HOW_OFTEN = (0.4, 0.2, 0.2, 0.2)
AXES = ("RAS", "LAS", "PSR", "LIA")


class Grid(NamedTuple):
    """A voxel grid: shape and affine (voxel → RAS mm)."""

    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]


@lru_cache(maxsize=1)
def template() -> tuple[Scan, Scan, Scan]:
    """The embedded head: image (0–197), labels (FreeSurfer ids), brain mask; each [193 229 193] at 1 mm, RAS. Do not modify them."""
    folder = resources.files(__package__) / "sample_files"
    with resources.as_file(folder) as path:
        return read(path / FILES[0]), read_labels(path / FILES[1]), read_labels(path / FILES[2])


def make_cohort(
    folder: str | Path,
    subjects: int = 12,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes `subjects` heads with labels and their manifest.tsv into `folder`, and returns the manifest's path.

    Subject i depends on (seed, i) only. The last two are the validation split (one of two, none of one). Existing files are kept, so a
    second call returns at once and an interrupted one continues. `workers` is the number of processes (default: one for each core).
    `progress(done, subjects)` is called after each head. About 5 MB and 2 to 4 core-seconds a head.

    Raises InputError if the folder has another manifest, or if `subjects` is not positive.
    """
    folder = Path(folder)
    if subjects < 1:
        raise InputError(f"subjects is {subjects}; give 1 or more")
    manifest, marker = folder / "manifest.tsv", folder / "cohort.json"
    recipe = _recipe(seed)
    try:
        known = json.loads(marker.read_text()) if marker.exists() else None
    except ValueError:
        raise InputError(f"{marker}: is damaged; delete the folder and let the sample be made again") from None
    if known is None and manifest.exists():
        raise InputError(f"{manifest}: was not written by the sample generator; choose another folder for the sample")
    folder.mkdir(parents=True, exist_ok=True)
    ours = known is not None and known["recipe"] == recipe
    missing = [i for i in range(subjects) if not (ours and all((folder / f).exists() for f in _names(i)))]
    if ours and not missing and known["finished"] == subjects and manifest.exists():
        return manifest
    if known is not None and not ours:
        for stale in [f for i in range(known["subjects"]) for f in _names(i)]:
            (folder / stale).unlink(missing_ok=True)
    # Written before the first head, so that a resumed call knows the recipe of existing heads.
    write_text(marker, json.dumps({"recipe": recipe, "subjects": subjects, "finished": 0}))
    done = subjects - len(missing)
    for _ in map_in_processes(partial(_save_subject, folder, seed), missing, workers, "made the sample cohort"):
        done += 1
        if progress is not None:
            progress(done, subjects)
    write_text(folder / "NOTICE.txt", NOTICE + "\n")
    write_text(folder / "COPYING_MNI", (resources.files(__package__) / "sample_files" / "COPYING_MNI").read_text())
    rows = []
    for i in range(subjects):
        image, labels = (folder.absolute() / name for name in _names(i))
        split = "val" if i >= max(subjects - 2, 1) else "train"
        rows.append(Row(f"sub-{i + 1:02d}", "1", image, (labels,), ("freesurfer",), "sample", split))
    write_manifest(manifest, rows)
    write_text(marker, json.dumps({"recipe": recipe, "subjects": subjects, "finished": subjects}))
    return manifest


def _save_subject(folder: Path, seed: int, i: int) -> int:
    for name, scan in zip(_names(i), _subject(seed, i), strict=True):
        write(folder / name, scan.voxels, scan.affine)
    return i


def _names(i: int) -> tuple[str, str]:
    return f"sub-{i + 1:02d}_T1w.nii.gz", f"sub-{i + 1:02d}_aseg.nii.gz"


def _recipe(seed: int) -> str:
    """A hash of what the voxels depend on beside the subject's number: version, seed and template."""
    digest = hashlib.sha256(f"{VERSION} {seed}".encode())
    for name in FILES:
        digest.update((resources.files(__package__) / "sample_files" / name).read_bytes())
    return digest.hexdigest()


def _subject(seed: int, i: int, coarser: float = 1.0) -> tuple[Scan, Scan]:
    """Image and labels (both uint8) of subject i on its own grid; `coarser` multiplies the voxel edges, for a fast preview."""
    rng = np.random.default_rng([seed, i])
    head, labels, _ = template()
    grid, axes = _grid(rng, coarser)
    nodes = tuple(int(np.ceil((n - 1) * edge / FIELD_MM)) + 2 for n, edge in zip(grid.shape, _edges(grid.affine), strict=True))
    at = _coordinates(rng, grid, nodes)
    recoloured = _contrast(rng)[head.voxels.astype(np.uint8)]
    bias = np.exp(rng.uniform(0.1, 0.3) * _smooth(rng, nodes, 50 / FIELD_MM))
    sigma = rng.uniform(0.01, 0.03)
    image = np.zeros(grid.shape, np.float32)
    # A thick slice is the mean of several thin ones.
    slices = max(1, round(_edges(grid.affine)[2] / _edges(grid.affine)[0]))
    for k in range(slices):
        thin = _upsample(at, grid.shape, (k - (slices - 1) / 2) / slices)
        image += ndimage.map_coordinates(recoloured, thin, order=1, mode="nearest") / np.float32(slices)
    image *= _upsample(bias[None], grid.shape)[0]
    # Rician noise: the magnitude of a complex signal.
    image = np.hypot(image + sigma * rng.standard_normal(grid.shape, np.float32), sigma * rng.standard_normal(grid.shape, np.float32))
    top = np.percentile(image[::3, ::3, ::3], 99.8)  # the fat of the scalp, or white matter near a coil
    image = np.rint(np.clip(image * (rng.uniform(180, 250) / top), 0, 255)).astype(np.uint8)
    deformed = ndimage.map_coordinates(labels.voxels.astype(np.uint8), _upsample(at, grid.shape), order=0, mode="constant")
    return reorient(Scan(image, grid.affine), axes), reorient(Scan(deformed, grid.affine), axes)


def _edges(affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "3"]:
    return np.linalg.norm(affine[:3, :3], axis=0)


def _grid(rng: np.random.Generator, coarser: float) -> tuple[Grid, str]:
    """A grid with a field of view like the template's, slightly off-centre, with chance ½ tilted (an oblique header); the order of axes."""
    head = template()[0]
    edges = rng.choice(VOXELS, p=VOXELS_HOW_OFTEN) * coarser
    shape = tuple(int(n) for n in np.round(np.array(head.voxels.shape) / LARGER / edges))
    tilt = Rotation.from_euler("xyz", rng.uniform(-6, 6, 3) * rng.integers(2), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = tilt * edges
    centre = _centre(head) + rng.uniform(-4, 4, 3)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid((shape[0], shape[1], shape[2]), affine), str(rng.choice(AXES))


def _centre(scan: Scan) -> Float[np.ndarray, "3"]:
    return (scan.affine @ [*((np.array(scan.voxels.shape) - 1) / 2), 1])[:3]


def _coordinates(rng: np.random.Generator, grid: Grid, nodes: tuple[int, int, int]) -> Float[np.ndarray, "3 x y z"]:
    """Template coordinates (voxel indices) of each node of the subject's grid: an affine map, a smooth warp, larger ventricles.

    Rotation within 8° about each axis, size within 8 % of a typical head's, ventricles narrower or wider by some millimetres, a warp of 1
    to 2.5 mm (root mean square), smooth over 25 mm: stronger or less smooth ones look wavy.
    """
    head = template()[0]
    scale = LARGER * rng.uniform(0.96, 1.04) * rng.uniform(0.96, 1.04, 3)
    linear = Rotation.from_euler("xyz", rng.uniform(-8, 8, 3), degrees=True).as_matrix() * scale
    warp = np.stack([_smooth(rng, nodes, 25 / FIELD_MM) for _ in range(3)]) * rng.uniform(1.0, 2.5)
    growth = rng.uniform(-1.5, 4.0)
    index = np.stack(np.meshgrid(*[np.linspace(0, n - 1, m) for n, m in zip(grid.shape, nodes, strict=True)], indexing="ij"))
    world = np.einsum("ij,jxyz->ixyz", grid.affine[:3, :3], index) + grid.affine[:3, 3, None, None, None]
    centre = _centre(head)[:, None, None, None]
    transformed = np.einsum("ij,jxyz->ixyz", linear, world - centre) + centre
    while True:
        # The template's voxels are 1 mm along RAS: its indices are millimetres from its first voxel.
        at = transformed + warp - head.affine[:3, 3, None, None, None]
        at += growth * np.stack([ndimage.map_coordinates(p, at / PULL_MM, order=1, mode="nearest") for p in _ventricle_pull()])
        jacobian = _jacobian(at)
        if jacobian.min() > 0.1 * np.median(jacobian):
            return at.astype(np.float32)
        warp, growth = 0.8 * warp, 0.8 * growth  # it folds, or nearly: reduce it


def _jacobian(at: Float[np.ndarray, "3 x y z"]) -> Float[np.ndarray, "x y z"]:
    """The determinant of the map's derivative at every node: positive where it does not fold."""
    return np.linalg.det(np.stack([np.stack(np.gradient(a), -1) for a in at], -2))


@lru_cache(maxsize=1)
def _ventricle_pull() -> Float[np.ndarray, "3 x y z"]:
    """A field towards the lateral ventricles, of largest length 1, on nodes PULL_MM apart: sampling along it enlarges them."""
    labels = template()[1].voxels
    step = int(PULL_MM)
    near = ndimage.gaussian_filter(np.isin(labels, VENTRICLES).astype(np.float32), 6.0)[::step, ::step, ::step]
    pull = np.stack(np.gradient(near))
    return pull / np.linalg.norm(pull, axis=0).max()


def _smooth(rng: np.random.Generator, shape: tuple[int, int, int], sigma: float) -> Float[np.ndarray, "x y z"]:
    """A Gaussian random field of mean 0 and standard deviation about 1, smooth over `sigma` nodes."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return field / field.std()


def _contrast(rng: np.random.Generator) -> Float[np.ndarray, "256"]:
    """A random rising curve from the template's grey levels to intensities, white matter at 1; the template's haze in air is reduced."""
    knots = np.array([0.0, 0.07, 0.25, 0.45, 0.65, 0.8, 0.95, 1.5])
    steps = np.diff(knots) * np.exp(rng.normal(0, 0.25, len(knots) - 1))
    steps[0] *= 0.15
    values = np.concatenate([[0.0], np.cumsum(steps)])
    curve = PchipInterpolator(knots, values)(np.arange(256) / WHITE)
    return (curve / np.interp(1.0, knots, values)).astype(np.float32)


def _upsample(fields: Shaped[np.ndarray, "c x y z"], shape: tuple[int, int, int], shift: float = 0.0) -> Float[np.ndarray, "c x2 y2 z2"]:
    """Fields interpolated from nodes to the voxels of a grid (end nodes on end voxels), shifted by `shift` voxels along its last axis."""
    out = []
    for field in fields.astype(np.float32):
        for axis, (n, m) in enumerate(zip(shape, field.shape, strict=True)):
            voxel = np.arange(n) + (shift if axis == 2 else 0.0)
            field = along_axis(field, voxel * ((m - 1) / (n - 1)), axis, order=1)
        out.append(field)
    return np.stack(out)
