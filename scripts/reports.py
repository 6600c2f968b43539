"""What the reports on finished runs share: how they are written, and how they say what was run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from brainseg_jax.core.errors import exit_code

PLACES = ("--workdir", "--config.data.manifest", "--config.data.cache")
CHECKPOINT = "--config.init.checkpoint"


def publish(out: Path, describe: Callable[[], str]) -> int:
    """Writes what `describe` returns as OUT.md and prints it. Returns the command's exit code."""

    def write() -> int:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = describe()
        out.with_suffix(".md").write_text(text)
        print(text)
        return 0

    return exit_code(write)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over people; NaN is "not counted"."""
    counted = [value for value in values if not np.isnan(value)]
    return f"{np.mean(counted):.3f} ± {np.std(counted, ddof=1):.3f}" if len(counted) > 1 else "–"


def command(facts: dict[str, Any]) -> str:
    """How a run was first started, as its run.json has it, without the places of its files."""
    given = facts["starts"][0]["command"].split()[1:]
    words = [word for word in given if not word.startswith((*PLACES, CHECKPOINT))] + ["--config.data.manifest=people.tsv"]
    words += [f"{CHECKPOINT}=PRETRAINED"] if any(word.startswith(CHECKPOINT) for word in given) else []
    return " ".join(["python -m brainseg_jax.main", *words])
