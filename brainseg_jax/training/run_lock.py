"""The run folder: one run at a time holds it, and only the same experiment is resumed in it."""

import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from brainseg_jax.config.resolve import differing_keys, known_entries
from brainseg_jax.core.errors import InputError
from brainseg_jax.core.files import check_place, check_regular, read_text
from brainseg_jax.data.loader import ProcessShare
from brainseg_jax.parallel import sync
from brainseg_jax.training import run_records
from brainseg_jax.training.metrics_log import read_metrics


@contextmanager
def exclusive_run_dir(folder: Path, share: ProcessShare) -> Iterator[None]:
    """Creates and locks the run folder; on leaving, removes what it created if nothing else was written there.

    Raises InputError if another run holds the folder, or if it is not the same folder in all processes.
    """
    with ExitStack() as stack:
        with sync.barrier():
            if share.index == 0:
                check_place(folder / run_records.RUN)
                made = [place for place in (folder, *folder.parents) if not place.exists()]
                folder.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    check_regular(folder / ".lock", "remove it")
                lock = stack.enter_context((folder / ".lock").open("a"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not os.path.samestat(os.fstat(lock.fileno()), (folder / ".lock").stat()):
                        raise OSError  # another start has just removed this lock file
                except OSError:
                    raise InputError(f"{folder}: another run is training in it; wait for it to end, or give another --workdir") from None
                stack.callback(remove_if_empty, folder, made)
        token = sync.broadcast_from_first(lambda: write_token(folder / ".lock")) if share.count > 1 else ""
        with sync.barrier():
            if share.index and not ((folder / ".lock").exists() and read_text(folder / ".lock") == token):
                raise InputError(f"{folder}: is not the same folder in all processes; give a --workdir on a disk that all of them share")
        yield


def remove_if_empty(folder: Path, made: Sequence[Path]) -> None:
    """Removes the lock of an otherwise empty folder, and then the folders `made` for it."""
    with suppress(OSError):  # one of them has other files
        if list(folder.iterdir()) == [folder / ".lock"]:
            (folder / ".lock").unlink()
            for place in made:
                place.rmdir()


def has_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a checkpoint."""
    return any(checkpoint.name.isdigit() for checkpoint in (folder / "checkpoints").glob("*/"))


def check_same_experiment(folder: Path, resolved: dict[str, dict[str, Any]]) -> None:
    """Raises InputError, naming the keys, if the folder holds checkpoints of another experiment.

    Likewise for a record in it that is missing or cannot be read.
    """
    resumes = has_checkpoint(folder)
    records = {
        name: run_records.read(folder / name) for name in (run_records.CONFIG, run_records.RUN) if resumes or (folder / name).exists()
    }
    if not resumes:
        return
    read_metrics(folder / "metrics.jsonl")
    if differences := differing_keys(known_entries(records[run_records.CONFIG], str(folder / run_records.CONFIG)), resolved):
        raise InputError(f"{folder} holds another experiment ({'; '.join(differences[:3])}); give another --workdir, or the same config")


def write_token(file: Path) -> str:
    """Writes a random token into a file and returns it."""
    token = secrets.token_hex()
    file.write_text(token)
    return token
