"""docs/reliability.md: what was tried and how it ended, from the lines that a series left; everything on the page is printed here."""

import re
from pathlib import Path

from trials import ledger
from trials.guards import GUARDS
from trials.kinds import KINDS
from trials.ledger import BAD, MEANING, SKIPPED, Trial

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import write_text

SHOWN = 50  # of what ended badly


def write(file: Path, seed: int, page: Path) -> int:
    """Writes the page and prints it."""
    done = ledger.trials(file, seed)
    if not done:
        raise InputError(f"{file}: holds no trial of seed {seed}; run scripts/endurance.py first")
    begun = [row for row in ledger.rows(file) if row.get("seed") == seed and "environment" in row]
    text = "\n".join([*head(begun), *tables(done), *ends(done, file.parent)]) + "\n"
    write_text(page, text)
    print(text)
    return 0


def head(begun: list[dict]) -> list[str]:
    """Where and how the series ran."""
    environment = begun[-1]["environment"]
    machine, packages = environment["machine"], environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("jax", "orbax-checkpoint", "grain", "numpy", "nibabel"))
    commits = " and ".join(dict.fromkeys(row["environment"]["commit"][:12] for row in begun))
    return [
        "# What was tried to break it\n",
        "`scripts/endurance.py` kills a training at random moments and lets it go on, damages the files that are read, fills the disk,",
        "gives hostile files to the commands, starts two at once, and takes guards out of the source. Each trial follows from a seed and",
        "ends as one of these:\n",
        *(f"- **{word}**: {meaning}" for word, meaning in MEANING.items()),
        "",
        f"{machine['processor']}, {machine['cores']} cores; Python {environment['python']}; {versions}; commit "
        f"{commits}; `{begun[-1]['command']}`.",
        "",
    ]


def tables(done: list[Trial]) -> list[str]:
    """All kinds, and the guards."""
    guards = {f"guard against {guard.what}": guard for guard in GUARDS}
    others = [trial for trial in done if trial.kind not in guards]
    lines = [ledger.table(others, KINDS), ""]
    seconds = sum(trial.seconds for trial in done)
    lines += [f"{len(done):,} trials in {seconds / 60:.0f} minutes, summed over two processes.", ""]
    if len(others) < len(done):
        lines += [
            "## Guards taken away",
            "",
            "Each is taken out of a copy of the source; the test named must then fail, and pass before.",
            "",
        ]
        lines += ["| guard against | file | test | fails without it |", "|---|---|---|---|"]
        for trial in done:
            if guard := guards.get(trial.kind):
                failed = "yes" if trial.outcome == ledger.HELD else "not tried" if trial.outcome == SKIPPED else "**no**"
                lines.append(f"| {guard.what} | `{guard.file}` | `{guard.test}` | {failed} |")
    return [*lines, ""]


def line(trial: Trial, folder: Path) -> str:
    """A trial that ended badly."""
    detail = " ".join(trial.detail.replace(f"{folder}/", "").split())
    detail = re.sub(r"(?<![\w.-])/[^\s'\"|]*/", "", detail)  # places of that machine
    return f"- {trial.outcome}, {trial.kind} {trial.n}: {detail[:300]}"


def ends(done: list[Trial], folder: Path) -> list[str]:
    """What ended badly, and what was left out; files by their places in the series' folder."""
    bad = [trial for trial in done if trial.outcome in BAD]
    lines = ["## What ended badly", "", *(line(t, folder) for t in bad[:SHOWN])]
    lines += [f"- and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    lines += [] if bad else ["Nothing."]
    if left := sorted({f"{trial.kind}: {trial.detail}" for trial in done if trial.outcome == SKIPPED}):
        lines += ["", "Left out: " + "; ".join(left) + "."]
    return lines
