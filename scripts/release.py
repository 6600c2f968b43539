"""A checkpoint becomes the one file that is handed on, with a card that says what it is worth: the package's own are made by this.

    python scripts/release.py runs/NAME/checkpoints/STEP --about brainseg_jax/pretrained/NOTICE.md \\
        --out brainseg_jax/pretrained/swin_ssl.safetensors
    python scripts/release.py runs/NAME/checkpoints/STEP --manifest people.tsv --splits runs/NAME/split.tsv \\
        --tasks skull,four,thirtythree --window 96,96,96 --about brainseg_jax/pretrained/{LIMITS,NOTICE}.md \\
        --out brainseg_jax/pretrained/t1.safetensors

The first is for a pretraining, of which the encoder is kept. With the second held-out people (val and test) are segmented by the very file
that is handed on: their volumes and entropies are the cohort that predictions are compared with, and Dice is of the test people. Beside OUT
a card for people is written, OUT's name with .md; `--about` is the part of it that no program can know: data, credit, licence, limits.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from reports import command, spread

from brainseg_jax.cli.arguments import Parser
from brainseg_jax.config.keys import get_key
from brainseg_jax.config.resolve import of_card
from brainseg_jax.core.errors import InputError, exit_code
from brainseg_jax.core.progress import progress
from brainseg_jax.core.pytree import count
from brainseg_jax.data.labels import lookup, missing, read_table
from brainseg_jax.data.manifest import Row, apply_splits, read_manifest
from brainseg_jax.data.nifti import read, read_labels
from brainseg_jax.data.preprocess import on_grid
from brainseg_jax.evaluation.metrics import score
from brainseg_jax.inference.predictor import Predictor, predictor
from brainseg_jax.inference.segmentation import native_labels, prepare, segment_grid_each, voxel_volumes
from brainseg_jax.models.encoders import ENCODERS
from brainseg_jax.qc.findings import COHORT, cohort_of
from brainseg_jax.weights import checkpoint, single_file

PLACES = ("data.manifest", "data.cache", "init.checkpoint", "synth.prior.table")  # of which only the name is kept


class Seen(NamedTuple):
    """Of one task: ml by class of each held-out person, mean entropies, and Dice by structure of each test person."""

    ml: list[Any]
    entropy: list[float]
    dice: list[dict[str, float]]


def main() -> int:
    """Writes the file and its card. Returns the exit code."""
    parser = Parser("python scripts/release.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--manifest", type=Path, help="of a segmentation: the manifest of its run")
    parser.add_argument("--splits", type=Path, help="and the run's split.tsv")
    parser.add_argument("--tasks", default="", help="groupings that the card tells of beside the network's own structures")
    parser.add_argument("--window", default="", metavar="X,Y,Z", help="windows to predict with (the crop of training)")
    parser.add_argument("--about", type=Path, nargs="+", required=True, help="Markdown: limits, data, credit, licence")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    return exit_code(lambda: release(parser.parse_args()))


def release(args: argparse.Namespace) -> int:
    """Writes the file and its card."""
    params, card = checkpoint.load(args.checkpoint)
    for key in PLACES:
        if key in card["config"]:
            card["config"][key]["value"] = Path(card["config"][key]["value"]).name
    if args.window:
        card["config"]["data.crop"]["value"] = [int(side) for side in args.window.split(",")]
    config = of_card(card, args.checkpoint)
    if config.objective == "segmentation":
        dtype, found = np.float16, judged(args, params, card)
    else:
        params, dtype, found = {"encoder": params["encoder"]}, np.float32, []
    single_file.write(args.out, params, card, dtype)
    text = "\n".join([*described(args, config, params, card, dtype), *found])
    args.out.with_suffix(".md").write_text(text)
    print(text)
    return 0


def judged(args: argparse.Namespace, params: Any, card: dict[str, Any]) -> list[str]:
    """Adds to the card what held-out people are like and what the network reaches on them; the same as lines for people."""
    if not (args.manifest and args.splits):
        raise InputError("--manifest and --splits are missing; give the run's, for the people that it did not see")
    rows = [
        row
        for row in apply_splits(read_manifest(args.manifest), args.splits)
        if row.split in ("val", "test") and row.labels and not row.labels_only
    ]
    if not rows:
        raise InputError(f"{args.manifest}: none of the held-out people has labels; give the manifest of the run")
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / args.out.name
        single_file.write(draft, params, card, np.float16)
        by = predictor([draft])
        seen = look([by, *(by.grouped(task) for task in args.tasks.split(",") if task)], rows)
    card[COHORT] = {name: cohort_of(np.array(found.ml), task.table, found.entropy) for name, (task, found) in seen.items()}
    card["dice"] = {name: {structure: float(np.nanmean(v)) for structure, v in of(found).items()} for name, (_, found) in seen.items()}
    return tables(card, seen, rows)


def look(tasks: list[Predictor], rows: list[Row]) -> dict[str, tuple[Predictor, Seen]]:
    """What each task's predictions of these people are like."""
    seen = {by.table.name: (by, Seen([], [], [])) for by in tasks}
    show = progress("segmenting held-out people")
    for n, row in enumerate(rows):
        show(n, len(rows))
        scan = read(row.image)
        reference = on_grid(read_labels(row.labels[0]), scan.voxels.shape, scan.affine, str(row.labels[0]))
        ready = prepare(tasks[0], [scan, *map(read, row.also)], list(map(str, row.images)))
        for (by, found), more in zip(seen.values(), segment_grid_each(tasks, ready), strict=True):
            classes = native_labels(by, more, ready)
            found.ml.append(voxel_volumes(classes, by.table, scan.affine))
            found.entropy.append(more.entropy)
            if row.split == "test":
                source = read_table(row.scheme[0])
                lacking = {s.name for s in missing(source, by.table)}
                expected = lookup(reference, source, by.table, str(row.labels[0]))
                spacing = tuple(np.linalg.norm(scan.affine[:3, :3], axis=0).tolist())
                dice = score(classes, expected, len(by.table.structures) + 1, spacing, ("dice",))["dice"][1:]
                names = [s.name for s in by.table.structures]
                found.dice.append({name: value for name, value in zip(names, dice, strict=True) if name not in lacking})
    show(len(rows), len(rows))
    return seen


def of(found: Seen) -> dict[str, list[float]]:
    """Dice of all people by structure."""
    values = defaultdict(list)
    for person in found.dice:
        for structure, value in person.items():
            values[structure].append(value)
    return values


def described(args: argparse.Namespace, config: ConfigDict, params: Any, card: dict[str, Any], dtype: type) -> list[str]:
    """What the file is, for people."""
    width = get_key(config, ENCODERS[config.encoder].width)
    of = (
        f"{config.encoder}, {config.decoder}"
        if config.objective == "segmentation"
        else f"{config.encoder} encoder, pretrained by {config.objective}"
    )
    return [
        f"# {args.out.stem}\n",
        *(f"{file.read_text().strip()}\n" for file in args.about),
        f"**What it is.** {of}, width {width}: {count(params):,} parameters, as {dtype.__name__}. Scans are taken to",
        f"{config.data.spacing:g} mm and {tuple(config.data.size)} voxels, and seen in windows of {tuple(config.data.crop)}. Trained on",
        f"{len(card['subjects'])} people by\n",
        *runs(args.checkpoint),
        "",
    ]


def runs(at: Path) -> list[str]:
    """The commands whose runs led to a checkpoint, the first one first, each with the steps it had made by then."""
    folder = at.parent.parent
    if not (folder / "run.json").exists():
        return []
    card = checkpoint.card(at)
    before = card["config"]["init.checkpoint"]["value"]
    line = f"    {command(json.loads((folder / 'run.json').read_text()))}  # {at.name} of {card['steps']} steps"
    return [*(runs(Path(before)) if before else []), line]


def tables(card: dict[str, Any], seen: dict[str, tuple[Predictor, Seen]], rows: list[Row]) -> list[str]:
    """Dice and volumes, for people."""
    lines = [f"## Dice of {sum(row.split == 'test' for row in rows)} people that it was neither trained on nor chosen by\n"]
    for name, (_, found) in seen.items():
        values = of(found)
        people = [float(np.nanmean(list(person.values()))) for person in found.dice]
        lines += [f"### {name}\n", "| structure | Dice |", "|---|---|"]
        lines += [f"| {structure} | {spread(v)} |" for structure, v in values.items()]
        lines += [f"| **mean of structures** | {spread(people)} |\n"] if len(values) > 1 else [""]
    lines.append(f"## Volumes of {len(rows)} held-out people as it sees them, ml\n")
    lines += ["| structure | mean | standard deviation |", "|---|---|---|"]
    by, _ = next(iter(seen.values()))
    cohort = card[COHORT][by.table.name]
    return (
        lines
        + [f"| {s.name} | {cohort[s.name][0]:.2f} | {cohort[s.name][1]:.2f} |" for s in by.table.structures if s.name in cohort]
        + [""]
    )


if __name__ == "__main__":
    sys.exit(main())
