"""What fine-tuning runs reach on people they have not seen, for the documents: Dice per structure, side by side, and held-out curves.

    brainseg evaluate --checkpoint runs/NAME/checkpoints/STEP --manifest people.tsv --splits runs/NAME/split.tsv \\
        --o runs/NAME/test.tsv
    python scripts/finetuning_report.py runs/NAME … --out docs/finetuning_2mm --credit "Images: …"

Each run folder holds the `test.tsv` of its evaluation. Writes OUT.md and, for each task, OUT_TASK.png. Runs of one task were tested on the
same people, and each is compared with the task's first by the differences person by person.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from ml_collections import ConfigDict

matplotlib.use("agg")
from matplotlib import pyplot
from reports import command, publish, spread

from brainseg_jax.cli.arguments import Parser
from brainseg_jax.config.resolve import from_resolved, known_entries, used_value
from brainseg_jax.core.errors import InputError, exit_code
from brainseg_jax.data.labels import read_table
from brainseg_jax.training import run_records
from brainseg_jax.training.metrics_log import read_metrics


class Run(NamedTuple):
    """A run: what it was, and the Dice of each structure for each person, NaN where a structure is not counted."""

    folder: Path
    config: ConfigDict
    facts: dict[str, Any]
    dice: dict[str, dict[str, float]]  # subject: structure: value

    def called(self) -> str:
        network = {"unetr": "UNETR", "swin_unetr": "Swin UNETR", "unet": "U-Net"}[self.config.decoder]
        return f"{network}, {'pretrained' if self.config.init.checkpoint else 'from scratch'}"

    def of_person(self, subject: str) -> float:
        return float(np.nanmean(list(self.dice[subject].values())))


def main() -> int:
    """Writes the report. Returns the exit code."""
    parser = Parser("python scripts/finetuning_report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, each with its test.tsv")
    parser.add_argument("--out", type=Path, required=True, help="where to write, without suffix")
    parser.add_argument("--credit", required=True, help="whose images and labels they are")
    return exit_code(lambda: publish((args := parser.parse_args()).out, lambda: describe([*map(read, args.runs)], args.out, args.credit)))


def read(folder: Path) -> Run:
    """The run of a folder. InputError where its table is missing."""
    table = folder / "test.tsv"
    if not table.exists():
        raise InputError(f"{table}: is missing; write it with brainseg evaluate --checkpoint … --o {table}")
    dice: dict[str, dict[str, float]] = defaultdict(dict)
    with table.open(encoding="utf-8") as lines:
        for line in csv.DictReader(lines, delimiter="\t"):
            if line["id"] != "0":
                dice[line["subject"]][line["structure"]] = float(line["dice"] or "nan")
    resolved = known_entries(run_records.read(folder / "config.json"), str(folder / "config.json"))
    config = from_resolved(resolved)
    config.dtype = used_value(resolved, "dtype")
    return Run(folder, config, run_records.read(folder / "run.json"), dict(dice))


def describe(runs: list[Run], out: Path, credit: str) -> str:
    """Draws every task's picture and returns the text."""
    tasks: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        tasks[run.config.data.labels].append(run)
    machine = runs[0].facts["environment"]["machine"]
    parts = [
        "# Fine-tuning on real heads\n",
        f"Written by `scripts/finetuning_report.py`. {machine['processor']}, {machine['cores']} cores; "
        f"JAX {runs[0].facts['environment']['packages']['jax']}.\n",
        *(task(name, members, out) for name, members in tasks.items()),
        f"{credit}\n",
    ]
    return "\n".join(parts)


def task(name: str, runs: list[Run], out: Path) -> str:
    """Table, commands and picture of one task."""
    people = sorted(runs[0].dice)
    for run in runs[1:]:
        if sorted(run.dice) != people:
            raise InputError(f"{run.folder}: was tested on other people than {runs[0].folder}; evaluate both on the same split")
    structures = [s.name for s in read_table(name).structures if s.name in runs[0].dice[people[0]]]
    lines = [
        f"## {name}, {len(people)} test people\n",
        "| Dice | " + " | ".join(run.called() for run in runs) + " |",
        "|---" * (len(runs) + 1) + "|",
    ]
    for structure in structures:
        lines.append(f"| {structure} | " + " | ".join(spread([run.dice[person][structure] for person in people]) for run in runs) + " |")
    means = [[run.of_person(person) for person in people] for run in runs]
    if len(structures) > 1:
        lines.append("| **mean of structures** | " + " | ".join(spread(values) for values in means) + " |")
    lines += ["", *(against(run, values, runs[0], means[0]) for run, values in zip(runs[1:], means[1:], strict=True)), ""]
    for run in runs:
        c = run.config
        done = max(row["step"] for row in read_metrics(run.folder / "metrics.jsonl") if row["kind"] == "train")
        lines += [
            f"{run.called()}: {done} steps of {c.data.batch} crops {tuple(c.data.crop)} at {c.data.spacing:g} mm, {c.dtype}, "
            f"{run.facts['parameters']['all']:,} parameters\n",
            f"    {command(run.facts)}\n",
        ]
    picture = out.with_name(f"{out.name}_{name}.png")
    draw(runs, structures, people, picture)
    return "\n".join([*lines, f"![{name}]({picture.name})\n"])


def against(run: Run, values: list[float], first: Run, others: list[float]) -> str:
    """The difference person by person, with the 95 % interval of its mean over resampled people."""
    gain = np.subtract(values, others)
    drawn = np.random.default_rng(0).choice(gain, (10_000, len(gain))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return (
        f"{run.called()} against {first.called()}: {gain.mean():+.4f} (95 % interval over people {low:+.4f} to {high:+.4f}); "
        f"better in {int((gain > 0).sum())} of {len(gain)}.\n"
    )


def draw(runs: list[Run], structures: list[str], people: list[str], file: Path) -> None:
    """Held-out Dice by step on the left, Dice of test people per structure on the right."""
    wide = float(np.clip(0.32 * len(structures) * len(runs), 3.0, 13.0))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(4.5 + wide, 4.2), width_ratios=(4.5, wide), layout="constrained")
    for i, run in enumerate(runs):
        rows = [row for row in read_metrics(run.folder / "metrics.jsonl") if row["kind"] == "eval"]
        left.plot([row["step"] for row in rows], [row["dice"] for row in rows], marker="o", ms=3, label=run.called())
        values = [[v for person in people if not np.isnan(v := run.dice[person][name])] for name in structures]
        at = np.arange(len(structures)) + (i - (len(runs) - 1) / 2) * 0.8 / len(runs)
        boxes = right.boxplot(values, positions=at, widths=0.7 / len(runs), patch_artist=True, manage_ticks=False, flierprops={"ms": 2})
        for part in boxes["boxes"]:
            part.set_facecolor(f"C{i}")
        for part in boxes["medians"]:
            part.set_color("black")
    left.set(xlabel="step", ylabel="Dice, held-out people", ylim=(0, 1))
    left.legend(loc="best")
    right.set_xticks(np.arange(len(structures)), structures, rotation=60, ha="right", fontsize=8)
    right.set(ylabel="Dice, test people")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
