"""What trials begin with, made once a series: undamaged files, and a finished training with its predictions."""

import shutil
from pathlib import Path

from trials import checkpoints, files, training


def make(folder: Path, runs: bool, commit: str) -> None:
    """Makes what is not there yet as that commit makes it."""
    parts = {"files": files.make, "checkpoints": checkpoints.make} | ({"": training.make} if runs else {})
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in parts.items():
        done = folder / f".{name or 'training'}"
        if done.exists() and done.read_text() == commit:
            continue
        if name:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
        else:
            for old in ("heads", "run", "predicted", "volumes", "tmp"):
                shutil.rmtree(folder / old, ignore_errors=True)
        build(folder / name if name else folder)
        done.write_text(commit)
