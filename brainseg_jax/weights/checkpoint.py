"""Checkpoints with Orbax v1: the only file that knows it. Saved while training goes on, sealed with checksums, verified before use.

Orbax commits a checkpoint wholly or not at all, but does not notice damage to it later; so each one is sealed with the SHA-256 of its
files. What a killed run left half-written is cleared away, since it would otherwise fill the disk.
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
SAVING = ".saving"  # holds the step whose checkpoint is being written, until it is sealed
CARRIED = "carried"  # key of what a checkpoint holds for its own run only
SMALL = 2**20  # bytes: what is larger holds numbers


class Checkpoints:
    """The checkpoints of one run, `folder`/STEP: the latest two and the one with the smallest `best` metric are kept.

    Use as a context manager: leaving it waits for the save that is under way. Orbax reads what it finds as soon as it is asked for
    anything, so it is only once `restore_latest` has taken away what is not whole.
    """

    def __init__(self, folder: Path, best: str):
        self.folder, self.best = folder.absolute(), best
        self.carried: dict[str, Any] = {}  # what was saved along with the state that was restored
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
            with suppress(OSError, ValueError):  # what cannot be written was raised above
                if "_orbax" in vars(self):
                    self._orbax.close()
            if jax.process_index() == 0:
                _clear_unfinished(self.folder)
            self._silence.__exit__(None, None, None)

    @cached_property
    def _orbax(self) -> ocp.training.Checkpointer:
        policies = ocp.training.preservation_policies
        context = ocp.Context()
        # Weights do not compress (by a tenth), and compressing them takes the cores that train.
        context.array.saving.use_compression = False
        return ocp.training.Checkpointer(
            self.folder,
            context=context,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(2),  # Orbax deletes when a save is committed, which is before it is sealed
                    policies.BestN(get_metric_fn=lambda m: m[self.best], reverse=True, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return sync.broadcast_from_first(lambda: _steps(self.folder))

    def save(
        self, step: int, state: Any, card: dict[str, Any], metrics: dict[str, float] | None = None, carried: dict[str, Any] | None = None
    ) -> None:
        """Starts a save; returns once the state has been copied and training may go on.

        `card` is what prediction needs to know, and `carried` what the run does when it goes on from here.
        """
        self.wait()
        with _writing(self.folder):
            if any(found.step == step for found in self._orbax.checkpoints):
                return
            if jax.process_index() == 0:
                write_text(self.folder / SAVING, str(step))
            response = self._orbax.save_async(
                step, state, checkpointable_name=STATE, metrics=metrics, custom_metadata=card | {CARRIED: carried or {}}
            )
        self._pending = self._pool.submit(_seal_after, response, self.folder / str(step))

    def wait(self) -> None:
        """Until the save under way is on disk and sealed; its error, if it had one, is raised here."""
        pending, self._pending = self._pending, None
        if pending:
            with _writing(self.folder):
                pending.result()

    def restore_latest(self, like: Any, say: Callable[[str], None]) -> Any | None:
        """The newest state that is whole, placed as the abstract state `like` says; None where there is no checkpoint.

        Damaged checkpoints are passed over, said, and removed. Raises InputError, and removes nothing, if every one is damaged.
        """
        with sync.barrier():
            if jax.process_index() == 0:
                _check_places(self.folder)
        # Read once, however many processes there are, and judged alike in all.
        found = sync.broadcast_from_first(lambda: _judged(self.folder))
        whole, damaged = [step for step, fault in found if not fault], [(step, fault) for step, fault in found if fault]
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
        self.carried = _described(self.folder / str(whole[0])).get(CARRIED, {})
        return self._orbax.load(whole[0], like, checkpointable_name=STATE)


def verify(checkpoint: Path, most: int | None = None) -> str:
    """What is wrong with a checkpoint's files, in a few words, or "" if all is as it was sealed; of files up to `most` bytes only.

    All that Orbax may read has to be under the seal: files in folders and those whose names begin with an underscore. Raises OSError for
    what cannot be read, which is no damage.
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

    `checkpoint` is a folder, of which that part only is read, or a network in one file (`single_file.py`). Raises InputError if it is
    neither, is damaged, or has no such part.
    """
    wanted = subtree.split("/")
    if checkpoint.suffix == single_file.SUFFIX:
        params, described = single_file.read(checkpoint)
        return _part({"params": params}, wanted, checkpoint), described
    described = card(checkpoint, None)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def choose(keys: Any, leaf: Any) -> Any:
        names = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys]
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) if names[: len(wanted)] == wanted else ocp.PLACEHOLDER

    with _there(checkpoint):
        metadata = ocp.metadata(checkpoint.absolute(), checkpointable_name=STATE)
        abstract = jax.tree_util.tree_map_with_path(choose, metadata.metadata)
        tree = ocp.load(checkpoint.absolute(), abstract, checkpointable_name=STATE)
    return jax.tree.map(jax.device_get, _part(tree, wanted, checkpoint)), described


def _part(tree: Any, names: list[str], checkpoint: Path) -> Any:
    for name in names:
        if not isinstance(tree, dict) or name not in tree:
            there = ", ".join(tree) if isinstance(tree, dict) else "no parts there"
            raise InputError(f"{checkpoint}: has no {'/'.join(names)}; it has {there}")
        tree = tree[name]
    return tree


def card(checkpoint: Path, most: int | None = SMALL) -> dict[str, Any]:
    """What a checkpoint says about itself, once a folder's files are verified up to `most` bytes: by default its numbers are not read.

    Raises InputError if it is none, or is damaged.
    """
    if checkpoint.suffix == single_file.SUFFIX:
        return single_file.read(checkpoint)[1]
    if checkpoint.suffix in (".pt", ".pth"):
        raise InputError(f"{checkpoint}: is a file of weights; make a checkpoint of it with brainseg convert {checkpoint} FOLDER")
    if not (checkpoint / STATE).is_dir():
        what = "is no checkpoint" if checkpoint.exists() else "no such file or folder"
        raise InputError(f"{checkpoint}: {what}; give the folder of one step, runs/NAME/checkpoints/STEP")
    with _there(checkpoint):
        if fault := verify(checkpoint, most):
            raise InputError(f"{checkpoint}: cannot be trusted, {fault}; use another checkpoint of the run")
        return {name: fact for name, fact in _described(checkpoint).items() if name != CARRIED}


@contextmanager
def _there(checkpoint: Path) -> Iterator[None]:
    """InputError where a checkpoint goes away while it is read: a training that writes on keeps its best and its latest ones only."""
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


def _described(checkpoint: Path) -> dict[str, Any]:
    return dict(ocp.metadata(checkpoint.absolute(), checkpointable_name=STATE).custom_metadata or {})


def write(checkpoint: Path, params: Any, card: dict[str, Any]) -> None:
    """One sealed checkpoint that holds parameters only, as a converter makes it; the folder must not exist yet.

    Raises InputError where nothing can be written.
    """
    check_place(checkpoint)  # Orbax would try for minutes
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
    """InputError, with the reason in a few words, for what cannot be written."""
    try:
        yield
    except (OSError, ValueError) as error:  # the second is how tensorstore tells of a full disk
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if isinstance(error, ValueError) and not code:
            raise
        # Orbax leaves writes that it has not begun, of which Python would complain when it drops them.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(f"{place}: no checkpoint can be written ({reason}); make room and run the command again") from error


@contextmanager
def _quiet(level: int = logging.ERROR) -> Iterator[None]:
    """Orbax does not tell of errors, with a page of tracebacks each, that it raises as well: nor do its writers that fail later.

    level: the least that it does not tell of; what it raises where a file is not there it first warns of.
    """
    logger, unraisable = logging.getLogger("absl"), sys.unraisablehook
    raised_too = lambda record: record.levelno < level or "orbax" not in record.pathname  # noqa: E731
    logger.addFilter(raised_too)
    sys.unraisablehook = lambda told: None if "Event loop is closed" in str(told.exc_value) else unraisable(told)
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        logger.removeFilter(raised_too)


def _settle() -> None:
    """Waits for Orbax's threads: after a save that failed some still write, to files that are to be removed."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax.") and thread is not threading.current_thread():
            threading.Thread.join(thread, 60)  # their own join raises what ended them


def _seal_after(response: Any, checkpoint: Path) -> None:
    response.result()
    _seal(checkpoint)
    if jax.process_index() == 0:
        (checkpoint.parent / SAVING).unlink()


def _seal(checkpoint: Path) -> None:
    if jax.process_index() == 0:
        write_text(checkpoint / SEAL, json.dumps({name: _digest(checkpoint / name) for name in _files(checkpoint)}, indent=1))


def _files(checkpoint: Path) -> list[str]:
    """Names of a checkpoint's files, without its seal and what systems hide there."""
    names = (file.relative_to(checkpoint) for file in checkpoint.rglob("*") if file.is_file())
    return sorted(name.as_posix() for name in names if name != Path(SEAL) and not any(part.startswith(".") for part in name.parts))


def _places(folder: Path) -> list[Path]:
    return [place for place in folder.glob("[0-9]*") if re.fullmatch(r"[0-9]+", place.name)]


def _check_places(folder: Path) -> None:
    """InputError for what lies among the checkpoints and bears a step's name, but is a file, a link or "040"."""
    for place in _places(folder):
        if place.is_symlink() or not place.is_dir() or place.name != str(int(place.name)):
            raise InputError(f"{place}: is no checkpoint of this run, and lies where one belongs; move it away")


def _steps(folder: Path) -> list[int]:
    return sorted(int(place.name) for place in _places(folder) if place.is_dir())


def _judged(folder: Path) -> list[tuple[int, str]]:
    """(step, what is wrong with its checkpoint or ""), from the newest on, once what a killed save left has been cleared away."""
    _clear_unfinished(folder)
    return [(step, verify(folder / str(step))) for step in reversed(_steps(folder))]


def _clear_unfinished(folder: Path) -> None:
    """Removes what a save left that did not end: half a checkpoint, or one that is whole for Orbax but not known to be so.

    Only the one that was being saved: another without a seal has lost it, and is damaged.
    """
    half, saving = [*folder.glob("*.orbax-checkpoint-tmp*")], folder / SAVING
    if half or saving.is_file():
        _settle()
    for left in half:
        shutil.rmtree(left, ignore_errors=True)
    if saving.is_file():
        unsealed = folder / saving.read_text(encoding="utf-8").strip()
        if unsealed in _places(folder) and not (unsealed / SEAL).exists():
            shutil.rmtree(unsealed)
        saving.unlink()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
