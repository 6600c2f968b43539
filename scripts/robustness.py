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

import numpy as np
import shifts
from reports import publish, spread
from shifts import Head

from brainseg_jax.cli.arguments import Parser
from brainseg_jax.config.recipes import TASKS
from brainseg_jax.core.errors import exit_code
from brainseg_jax.core.progress import progress
from brainseg_jax.data.manifest import apply_splits, read_manifest
from brainseg_jax.inference.predictor import predictor
from brainseg_jax.pretrained import NETWORKS

ALTERATIONS: dict[str, Callable[[Head, np.random.Generator], Head]] = {
    "as they are": lambda head, rng: head,
    "turned by 15° to a side and 15° back": shifts.turned,
    "stored in another order": shifts.stored_otherwise,
    "slices three times as thick": shifts.thick,
    "the lowest 20 mm of the brain cut off": shifts.cut,
    "Rician noise, a tenth": shifts.noisy,
    "shading, 2.7 to 1": shifts.shaded,
    "gamma 0.6": shifts.flat,
    "gamma 1.6": shifts.steep,
    "without its skull": shifts.stripped,
    "without its face": shifts.faceless,
    "tissues as in FLAIR": shifts.as_flair,
    "tissues as in T2": shifts.as_t2,
}


def main() -> int:
    """Writes the report. Returns the exit code."""
    parser = Parser("python scripts/robustness.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--checkpoint", nargs="+", type=Path, help="checkpoints to compare; by default the package's networks")
    parser.add_argument("--people", type=int, default=8, help="how many of the test people (%(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    return exit_code(lambda: publish((args := parser.parse_args()).out, lambda: report(args)))


def report(args: argparse.Namespace) -> str:
    """A table for each network."""
    shifts.check_people(args.people)
    networks = args.checkpoint or NETWORKS.values()
    rows = apply_splits(read_manifest(args.manifest), args.splits)
    rows = [row for row in rows if row.split == "test" and row.labels and not row.labels_only][: args.people]
    show, done, lines = progress("segmenting altered scans"), 0, []
    for network in networks:
        by = predictor([network])
        lines += [f"## {network.stem}", "", "| | " + " | ".join(TASKS) + " |", "|---|" + "---|" * len(TASKS)]
        for name, alter in ALTERATIONS.items():
            people = []
            for n, row in enumerate(rows):
                show(done, len(networks) * len(ALTERATIONS) * len(rows))
                head, source = shifts.head_of(row)
                people.append(shifts.judged(by, alter(head, np.random.default_rng(n)), source, str(row.image)))
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


if __name__ == "__main__":
    sys.exit(main())
