"""Damaged files, each read by the function that reads them in earnest, and the result compared with that of the undamaged file."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from trials import torchfile
from trials.bounds import tried
from trials.damage import harmed
from trials.equality import equal
from trials.ledger import HELD, NOTICED, UNKNOWABLE, WRONG, Verdict

from brainseg_jax.data import cache, nifti, nifti_write
from brainseg_jax.data.manifest import Row
from brainseg_jax.data.preprocess import spec
from brainseg_jax.weights import single_file
from converters.torchfile import read as read_torch

SHAPE = (22, 24, 20)
NII, MGH = 352, 284  # bytes of the headers
# What two forms may differ by and be one (as data/affine_checks.py has it, and rounding), and how far from the origin a head may lie, mm.
SIZE, NEAR, REACH = 0.011, 1.25, 3000


class Target(NamedTuple):
    """A file that is damaged, how it is read, the bytes in which half of the harms lie, and what another result may be worth."""

    file: str
    read: Callable[[Path], Any]
    header: int
    differing: Callable[[Any, Any, bytes, bytes], Verdict] = lambda *_: Verdict(WRONG, "another content")


def plain_nifti(expected: Any, found: Any, before: bytes, after: bytes) -> Verdict:
    """What of an uncompressed NIfTI could be told: its shape by the file's size, its geometry by the second form, not its voxels."""
    if found.voxels.shape != expected.voxels.shape or len(after) != len(before):
        return Verdict(WRONG, f"another shape, {found.voxels.shape}, or size, {len(after)}")
    sizes = [np.linalg.norm(scan.affine[:3, :3], axis=0) for scan in (found, expected)]
    away = corners(found.affine, expected.affine, expected.voxels.shape)
    if np.abs(sizes[0] / sizes[1] - 1).max() > SIZE or away > NEAR:
        if of_forms := [remark for remark in found.remarks if "-form" in remark]:  # others are of intensities
            return Verdict(NOTICED, of_forms[0])
        return Verdict(WRONG, f"another geometry, voxels of {sizes[0].round(4).tolist()} mm, {away:.3g} mm away")
    if before[108:112] != after[108:112] and not equal(found.voxels, expected.voxels):
        return Verdict(WRONG, "voxels from another place in the file")
    return Verdict(UNKNOWABLE, "other voxels" if equal(found.affine, expected.affine) else f"up to {away:.2g} mm away")


def plain_mgh(expected: Any, found: Any, before: bytes, after: bytes) -> Verdict:
    """What of an uncompressed MGH could be told: its shape by the size, directions by being of length 1 and orthogonal, a far centre."""
    numbers = np.array(struct.unpack(">15f", after[30:90]))
    directions, centre = numbers[3:12].reshape(3, 3), numbers[12:]
    if found.voxels.shape != expected.voxels.shape or len(after) != len(before):
        return Verdict(WRONG, f"another shape, {found.voxels.shape}, or size, {len(after)}")
    if np.abs(directions @ directions.T - np.eye(3)).max() > 0.02 or np.abs(centre).max() > REACH:
        return Verdict(WRONG, f"directions {directions.round(3).tolist()}, centre {centre.tolist()}")
    return Verdict(
        UNKNOWABLE, "other voxels" if equal(found.affine, expected.affine) else "another spacing or place: there is one form only"
    )


def corners(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far, in mm, a volume's corners lie apart under two affines."""
    ends = np.array([[x, y, z, 1] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1) for z in (0, shape[2] - 1)])
    return float(np.abs(ends @ (a - b).T).max())


def cached(file: Path) -> Any:
    """All that is kept in a cached volume."""
    return cache.load(file), cache.record(file)


TARGETS = {
    "scans, .nii.gz": Target("head.nii.gz", nifti.read, 400),
    "scans, .mgz": Target("head.mgz", nifti.read, 400),
    "label maps, .nii.gz": Target("labels.nii.gz", nifti.read_labels, 400),
    "scans, .nii": Target("head.nii", nifti.read, NII, plain_nifti),
    "scans, .mgh": Target("head.mgh", nifti.read, MGH, plain_mgh),
    "cached volumes": Target("volume.npz", cached, 400),
    "network files": Target("network.safetensors", single_file.read, 4000),
    "torch files": Target("weights.pt", read_torch, 1200),
}


def make(folder: Path) -> None:
    """The undamaged files."""
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(np.eye(3) + 0.1 * rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.diag(turn)) * (6, 5.5, 7)
    affine[:3, 3] = (-70.5, -62.25, -66.0)
    at = (np.indices(SHAPE).reshape(3, -1).T - (np.array(SHAPE) - 1) / 2) / (8, 9, 8)
    inside = (np.sum(at**2, axis=1) < 1).reshape(SHAPE)
    head = np.where(inside, rng.normal(300, 40, SHAPE), rng.normal(15, 3, SHAPE)).clip(0).astype(np.int16)
    for name in ("head.nii.gz", "head.mgz", "head.nii", "head.mgh"):
        nifti_write.write(folder / name, head, affine)
    nifti_write.write(folder / "labels.nii.gz", (inside * rng.integers(1, 60, SHAPE)).astype(np.uint8), affine)
    row = Row("head", "", folder / "head.nii.gz", (), (), "made", "train")
    (entry,), _ = cache.build([row], spec("default", 6.0, (24, 24, 24)), folder / "cache", max_failures=0.0, workers=1)
    entry.file.rename(folder / "volume.npz")
    arrays = {f"layer{i}": {"kernel": rng.normal(size=(6, 5)).astype(np.float32), "bias": np.zeros(5, np.float32)} for i in range(8)}
    card = {"config": {"seed": {"value": 0, "from": "default"}}, "spec": {"spacing": 2.0, "size": [96, 96, 96]}, "subjects": ["a", "b"]}
    single_file.write(folder / "network.safetensors", arrays, card)
    torchfile.save(folder / "weights.pt", {f"{name}.{part}": value for name, layer in arrays.items() for part, value in layer.items()})


def trial(target: Target, material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """One harm to a file of that kind."""
    original, place = material / "files" / target.file, folder / target.file
    before = original.read_bytes()
    after, words = harmed(before, rng, target.header if rng.random() < 0.5 else 0)
    if after is not None:
        place.write_bytes(after)
    expected = target.read(original)

    def judge(found: Any) -> Verdict:
        return Verdict(HELD, "") if equal(found, expected) else target.differing(expected, found, before, after or b"")

    verdict = tried(lambda: target.read(place), place.name, judge)
    return verdict._replace(detail=f"{words}; {verdict.detail}")
