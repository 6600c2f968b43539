"""How a network fares on scans unlike those it was trained on: held-out people turned, cut, thick-sliced, noisy, and so on.

    python scripts/robustness.py --manifest people.tsv --splits runs/NAME/split.tsv --out docs/robustness

Test people are altered one way after the other and segmented as `predict` does it, by each of the networks that come with the package or by
`--checkpoint`. OUT.md has the mean Dice of each task, on the altered scan's own grid, against the labels altered alike. Contrasts are
another order of the same scan's tissues: they have the T1's noise and edges, and are no scans of that sequence.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from reports import publish, spread
from scipy import ndimage

from brainseg_jax.data.labels import Table, lookup, missing, read_table, voxel_ids
from brainseg_jax.data.manifest import apply_splits, read_manifest
from brainseg_jax.data.nifti import Scan, read, read_labels, reorient
from brainseg_jax.evaluate import on_grid
from brainseg_jax.files import NETWORKS
from brainseg_jax.metrics import score
from brainseg_jax.prediction import Predictor, predictor, prepare, segment
from brainseg_jax.recipes import TASKS
from brainseg_jax.record import progress


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


ALTERATIONS: dict[str, Callable[[Head, np.random.Generator], Head]] = {
    "as they are": lambda head, rng: head,
    "turned by 15° to a side and 15° back": turned,
    "stored in another order": stored_otherwise,
    "slices three times as thick": thick,
    "the lowest 20 mm of the brain cut off": cut,
    "Rician noise, a tenth": noisy,
    "shading, 2.7 to 1": shaded,
    "gamma 0.6": flat,
    "gamma 1.6": steep,
    "without its skull": stripped,
    "without its face": faceless,
    "tissues as in FLAIR": as_flair,
    "tissues as in T2": as_t2,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--checkpoint", nargs="+", type=Path, help="checkpoints to compare; by default the package's networks")
    parser.add_argument("--people", type=int, default=8, help="how many of the test people (%(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    return publish(args.out, lambda: report(args))


def report(args: argparse.Namespace) -> str:
    """A table for each network."""
    networks = args.checkpoint or NETWORKS.values()
    rows = apply_splits(read_manifest(args.manifest), args.splits)
    rows = [row for row in rows if row.split == "test" and row.labels and not row.alone][: args.people]
    show, done, lines = progress("segmenting altered scans"), 0, []
    for network in networks:
        by = predictor([network])
        lines += [f"## {network.stem}", "", "| | " + " | ".join(TASKS) + " |", "|---|" + "---|" * len(TASKS)]
        for name, alter in ALTERATIONS.items():
            people = []
            for n, row in enumerate(rows):
                show(done, len(networks) * len(ALTERATIONS) * len(rows))
                scan, source = read(row.image), read_table(row.scheme[0])
                labels = on_grid(read_labels(row.labels[0]), scan.voxels.shape, scan.affine, str(row.labels[0]))
                head = alter(pointing("RAS", scan.voxels, labels, scan.affine), np.random.default_rng(n))
                people.append(judged(by, head, source, str(row.image)))
                done += 1
            lines.append(f"| {name} | " + " | ".join(spread([person[task] for person in people]) for task in TASKS) + " |")
        lines.append("")
    show(1, 1)
    return "\n".join(
        [
            "# Scans unlike those it was trained on\n",
            f"Mean Dice over structures, and its spread over {len(rows)} people that no network was trained on or chosen by.",
            "Other contrasts are T1 scans whose tissues were given other brightnesses.\n",
            *lines,
        ]
    )


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


if __name__ == "__main__":
    sys.exit(main())
