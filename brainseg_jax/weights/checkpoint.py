"""Checkpoints with Orbax v1, used only in this file: saved asynchronously, sealed with checksums, verified before use.

Orbax writes checkpoints atomically, but does not detect later damage; so each one is sealed with the SHA-256 of its files. Partial
checkpoints of killed runs are removed, or they would fill the disk.
"""

import glob
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from brainseg_jax.core.errors import InputError, first_few
from brainseg_jax.core.files import SEAL, check_place, read_text, write_text
from brainseg_jax.parallel import sync
from brainseg_jax.weights import single_file

STATE = "state"
SAVING = ".saving"  # contains the step whose checkpoint is being written, until it is sealed
CARRIED = "carried"  # key of the card's values for resuming the run
SMALL = 2**20  # bytes: larger files contain arrays


class Checkpoints:
    """The checkpoints of one run, `folder`/STEP: the latest two and the one with the smallest `best` metric are kept.

    A context manager, whose exit waits for the save in progress. Orbax reads all checkpoints at its first use, so it is created only after
    `restore_latest` has removed damaged ones.
    """

    def __init__(self, folder: Path, best: str):
        self.folder, self.best = folder.absolute(), best
        self.carried: dict[str, Any] = {}  # the values saved with the restored state
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future | None = None
        self._silence = _quiet()

    def __enter__(self) -> "Checkpoints":
        self._silence.__enter__()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        try:
            with suppress(InputError) if error else nullcontext():
                self.wait()
        finally:
            self._pool.shutdown()
            with suppress(OSError, ValueError):  # write errors were raised above
                if "_orbax" in vars(self):
                    self._orbax.close()
            if jax.process_index() == 0:
                _clear_unfinished(self.folder)
            self._silence.__exit__(None, None, None)

    @cached_property
    def _orbax(self) -> ocp.training.Checkpointer:
        policies = ocp.training.preservation_policies
        context = ocp.Context()
        # Weights compress by a tenth only, and compression takes CPU time from training.
        context.array.saving.use_compression = False
        return ocp.training.Checkpointer(
            self.folder,
            context=context,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(2),  # Orbax deletes old ones when a save is committed, before it is sealed
                    policies.BestN(get_metric_fn=lambda m: m[self.best], reverse=True, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def steps(self) -> list[int]:
        """The steps with a checkpoint, in order."""
        return sync.broadcast_from_first(lambda: _steps(self.folder))

    def save(
        self, step: int, state: Any, card: dict[str, Any], metrics: dict[str, float] | None = None, carried: dict[str, Any] | None = None
    ) -> None:
        """Starts a save, and returns when the state has been copied and training may continue. `card` is for users of the checkpoint,
        `carried` for resuming the run."""
        self.wait()
        with _writing(self.folder):
            if any(checkpoint.step == step for checkpoint in self._orbax.checkpoints):
                return
            if jax.process_index() == 0:
                write_text(self.folder / SAVING, str(step))
            response = self._orbax.save_async(
                step, state, checkpointable_name=STATE, metrics=metrics, custom_metadata=card | {CARRIED: carried or {}}
            )
        self._pending = self._pool.submit(_seal_after, response, self.folder / str(step))

    def wait(self) -> None:
        """Waits until the save in progress is on disk and sealed, and raises its error, if any."""
        pending, self._pending = self._pending, None
        if pending:
            with _writing(self.folder):
                pending.result()

    def restore_latest(self, like: Any, say: Callable[[str], None]) -> Any | None:
        """The newest undamaged state, with the shardings of the abstract state `like`; None without a checkpoint.

        Damaged checkpoints are skipped, with a message, and removed. Raises InputError, and removes nothing, if all are damaged.
        """
        with sync.barrier():
            if jax.process_index() == 0:
                _check_places(self.folder)
        # Verified by process 0 only, so that files are read once and all processes agree.
        verified = sync.broadcast_from_first(lambda: _verified(self.folder))
        whole, damaged = [step for step, fault in verified if not fault], [(step, fault) for step, fault in verified if fault]
        if damaged and not whole:
            raise InputError(
                f"{self.folder}: no checkpoint is whole ({first_few(fault for _, fault in damaged)}); restore one from a backup, or give "
                "another --workdir or delete this folder to start over"
            )
        for step, fault in damaged:
            say(f"checkpoint {step} is passed over and removed: {fault}")
        sync.broadcast_from_first(lambda: [shutil.rmtree(self.folder / str(step)) for step, _ in damaged])
        if not whole:
            return None
        self.carried = _metadata(self.folder / str(whole[0])).get(CARRIED, {})
        return self._orbax.load(whole[0], like, checkpointable_name=STATE)


def verify(checkpoint: Path, most: int | None = None) -> str:
    """The fault of a checkpoint's files, or "" if they match the seal; hashes are compared for files up to `most` bytes only.

    All files that Orbax may read have to be in the seal: those in folders and those with names that begin with an underscore. Raises
    OSError for unreadable files, which are not damaged.
    """
    seal = checkpoint / SEAL
    try:
        sealed = json.loads(read_text(seal))
    except FileNotFoundError:
        return f"{seal} is missing"
    except (InputError, ValueError, RecursionError):
        return f"{seal} is damaged"
    if not isinstance(sealed, dict) or not sealed:
        return f"{seal} is damaged"
    for name in sorted(sealed.keys() | {name for name in _files(checkpoint) if "/" in name or name.startswith("_")}):
        file = checkpoint / name
        if name not in sealed:
            return f"{file} is not in {SEAL}"
        if not file.is_file():
            return f"{file} is missing"
        if (most is None or file.stat().st_size <= most) and _digest(file) != sealed[name]:
            return f"{file} is damaged"
    return ""


def load(checkpoint: Path, subtree: str = "params") -> tuple[Any, dict[str, Any]]:
    """A part of a checkpoint's state, e.g. "params/encoder", as NumPy arrays, and the checkpoint's card.

    `checkpoint` is a folder, of which only that part is read, or a network in one file (`single_file.py`). Raises InputError if it is
    neither, is damaged, or does not have the part.
    """
    names = subtree.split("/")
    if checkpoint.suffix == single_file.SUFFIX:
        params, facts = single_file.read(checkpoint)
        return _part({"params": params}, names, checkpoint), facts
    facts = card(checkpoint, None)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def abstract(keys: Any, leaf: Any) -> Any:
        path = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys]
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) if path[: len(names)] == names else ocp.PLACEHOLDER

    with _reading(checkpoint):
        metadata = ocp.metadata(checkpoint.absolute(), checkpointable_name=STATE)
        like = jax.tree_util.tree_map_with_path(abstract, metadata.metadata)
        tree = ocp.load(checkpoint.absolute(), like, checkpointable_name=STATE)
    return jax.tree.map(jax.device_get, _part(tree, names, checkpoint)), facts


def _part(tree: Any, names: list[str], checkpoint: Path) -> Any:
    for name in names:
        if not isinstance(tree, dict) or name not in tree:
            existing = ", ".join(tree) if isinstance(tree, dict) else "no parts there"
            raise InputError(f"{checkpoint}: has no {'/'.join(names)}; it has {existing}")
        tree = tree[name]
    return tree


def card(checkpoint: Path, most: int | None = SMALL) -> dict[str, Any]:
    """The card of a checkpoint, after verifying a folder's files up to `most` bytes, by default without its arrays. Raises InputError if it
    is not a checkpoint, or is damaged."""
    if checkpoint.suffix == single_file.SUFFIX:
        return single_file.read(checkpoint)[1]
    if checkpoint.suffix in (".pt", ".pth"):
        raise InputError(f"{checkpoint}: is a file of weights; make a checkpoint of it with brainseg convert {checkpoint} FOLDER")
    if not (checkpoint / STATE).is_dir():
        what = "is no checkpoint" if checkpoint.exists() else "no such file or folder"
        raise InputError(f"{checkpoint}: {what}; give the folder of one step, runs/NAME/checkpoints/STEP")
    with _reading(checkpoint):
        if fault := verify(checkpoint, most):
            raise InputError(f"{checkpoint}: cannot be trusted, {fault}; use another checkpoint of the run")
        return {name: fact for name, fact in _metadata(checkpoint).items() if name != CARRIED}


@contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    """A block that raises InputError if the checkpoint is removed while it is read: running trainings keep their best and latest only."""
    try:
        with _quiet(logging.WARNING):
            yield
    except InputError:
        raise
    except Exception:
        try:
            whole = not verify(checkpoint)
        except OSError:
            whole = False
        if whole:
            raise
        raise InputError(f"{checkpoint}: was removed while it was read, by a training that writes on; use a newer one of its run") from None


def _metadata(checkpoint: Path) -> dict[str, Any]:
    return dict(ocp.metadata(checkpoint.absolute(), checkpointable_name=STATE).custom_metadata or {})


def write(checkpoint: Path, params: Any, card: dict[str, Any]) -> None:
    """Writes a sealed checkpoint of parameters only, for a converter, to a new folder. Raises InputError if it is not writable."""
    check_place(checkpoint)  # Orbax would retry for minutes
    context = ocp.Context()
    context.array.saving.use_compression = False
    with _quiet(), _writing(checkpoint):
        try:
            with context:
                ocp.save_checkpointables(checkpoint.absolute(), {STATE: {"params": params}}, custom_metadata=card)
            _seal(checkpoint)
        except BaseException:
            _settle()
            for left in (checkpoint, *checkpoint.parent.glob(f"{glob.escape(checkpoint.name)}.orbax-checkpoint-tmp*")):
                shutil.rmtree(left, ignore_errors=True)
            raise


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """A block that turns write errors into InputError, with the reason."""
    try:
        yield
    except (OSError, ValueError) as error:  # tensorstore raises ValueError for a full disk
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if isinstance(error, ValueError) and not code:
            raise
        # Orbax drops writes that have not begun, about which Python warns.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(f"{place}: no checkpoint can be written ({reason}); make room and run the command again") from error


@contextmanager
def _quiet(level: int = logging.ERROR) -> Iterator[None]:
    """A block without Orbax's log records from `level` up: it logs pages of tracebacks for errors that it raises as well (warnings for
    missing files), also in threads that fail later."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    other = lambda record: record.levelno < level or "orbax" not in record.pathname  # noqa: E731
    logger.addFilter(other)
    sys.unraisablehook = lambda unraisable: None if "Event loop is closed" in str(unraisable.exc_value) else hook(unraisable)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.removeFilter(other)


def _settle() -> None:
    """Waits for Orbax's threads: after a failed save some still write to files that are to be removed."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax.") and thread is not threading.current_thread():
            threading.Thread.join(thread, 60)  # their own join raises the thread's error


def _seal_after(response: Any, checkpoint: Path) -> None:
    response.result()
    _seal(checkpoint)
    if jax.process_index() == 0:
        (checkpoint.parent / SAVING).unlink()


def _seal(checkpoint: Path) -> None:
    if jax.process_index() == 0:
        write_text(checkpoint / SEAL, json.dumps({name: _digest(checkpoint / name) for name in _files(checkpoint)}, indent=1))


def _files(checkpoint: Path) -> list[str]:
    """The names of a checkpoint's files, without its seal and hidden files."""
    names = (file.relative_to(checkpoint) for file in checkpoint.rglob("*") if file.is_file())
    return sorted(name.as_posix() for name in names if name != Path(SEAL) and not any(part.startswith(".") for part in name.parts))


def _places(folder: Path) -> list[Path]:
    return [place for place in folder.glob("[0-9]*") if re.fullmatch(r"[0-9]+", place.name)]


def _check_places(folder: Path) -> None:
    """Raises InputError for an entry named like a step that is not a checkpoint: a file, a link or "040"."""
    for place in _places(folder):
        if place.is_symlink() or not place.is_dir() or place.name != str(int(place.name)):
            raise InputError(f"{place}: is no checkpoint of this run, and lies where one belongs; move it away")


def _steps(folder: Path) -> list[int]:
    return sorted(int(place.name) for place in _places(folder) if place.is_dir())


def _verified(folder: Path) -> list[tuple[int, str]]:
    """(step, fault of its checkpoint or ""), the newest first, after removing the remains of a killed save."""
    _clear_unfinished(folder)
    return [(step, verify(folder / str(step))) for step in reversed(_steps(folder))]


def _clear_unfinished(folder: Path) -> None:
    """Removes the remains of an interrupted save: a partial checkpoint, or one that Orbax committed and that was not sealed. Other
    checkpoints without a seal have lost it, and are damaged."""
    partial, saving = [*folder.glob("*.orbax-checkpoint-tmp*")], folder / SAVING
    if partial or saving.is_file():
        _settle()
    for path in partial:
        shutil.rmtree(path, ignore_errors=True)
    if saving.is_file():
        unsealed = folder / saving.read_text(encoding="utf-8").strip()
        if unsealed in _places(folder) and not (unsealed / SEAL).exists():
            shutil.rmtree(unsealed)
        saving.unlink()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
