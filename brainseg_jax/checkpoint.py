"""Checkpoints with Orbax v1: the only file that knows it. Saved while training goes on, sealed with checksums, verified before use.

Orbax commits a checkpoint wholly or not at all, but does not notice damage to it later; so each one is sealed with the SHA-256 of its
files. What a killed run left half-written is cleared away, since it would otherwise fill the disk.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from brainseg_jax import distributed, weights
from brainseg_jax.errors import InputError
from brainseg_jax.files import SEAL, check_place, write_text

STATE = "state"


class Checkpoints:
    """The checkpoints of one run, `folder`/STEP: the latest two and the one with the smallest `best` metric are kept.

    Use as a context manager: leaving it waits for the save that is under way.
    """

    def __init__(self, folder: Path, best: str):
        self.folder = folder.absolute()
        distributed.from_first(lambda: _clear_unsealed(self.folder))
        policies = ocp.training.preservation_policies
        context = ocp.Context()
        # Weights do not compress (by a tenth), and compressing them takes the cores that train.
        context.array.saving.use_compression = False
        self._orbax = ocp.training.Checkpointer(
            self.folder,
            context=context,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(2),  # Orbax deletes when a save is committed, which is before it is sealed
                    policies.BestN(get_metric_fn=lambda m: m[best], reverse=True, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
            cleanup_tmp_directories=True,
        )
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.wait()
        self._pool.shutdown()
        self._orbax.close()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return [found.step for found in self._orbax.checkpoints]

    def save(self, step: int, state: Any, card: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Starts a save; returns once the state has been copied and training may go on. `card` is what prediction needs to know."""
        self.wait()
        if step in self.steps():
            return
        response = self._orbax.save_async(step, state, checkpointable_name=STATE, metrics=metrics, custom_metadata=card)
        self._pending = self._pool.submit(_seal_after, response, self.folder / str(step))

    def wait(self) -> None:
        """Until the save under way is on disk and sealed; its error, if it had one, is raised here."""
        pending, self._pending = self._pending, None
        if pending:
            try:
                pending.result()
            except (OSError, ValueError) as error:  # the second is how tensorstore tells of a full disk
                raise InputError(f"{self.folder}: no checkpoint can be written ({error}); make room and run the command again") from error

    def restore_latest(self, like: Any, say: Callable[[str], None]) -> Any | None:
        """The newest state that is whole, placed as the abstract state `like` says; None where there is no checkpoint.

        A damaged checkpoint is passed over, said, and removed. Raises InputError if every checkpoint is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            # Read once, however many processes there are, and judged alike in all.
            if fault := distributed.from_first(lambda step=step: verify(self.folder / str(step))):
                say(f"checkpoint {step} is passed over: {fault}")
                continue
            for newer in [s for s in steps if s > step]:
                self._orbax.delete(newer)
            return self._orbax.load(step, like, checkpointable_name=STATE)
        if steps:
            raise InputError(f"{self.folder}: no checkpoint is whole; restore one from a backup, or give another --workdir to start over")
        return None


def verify(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files, in a few words, or "" if all is as it was sealed."""
    seal = checkpoint / SEAL
    if not seal.exists():
        return f"{seal} is missing"
    try:
        expected = json.loads(seal.read_text())
    except ValueError:
        return f"{seal} is damaged"
    for name, digest in expected.items():
        if not (checkpoint / name).is_file():
            return f"{checkpoint / name} is missing"
        if _digest(checkpoint / name) != digest:
            return f"{checkpoint / name} is damaged"
    return ""


def load(checkpoint: Path, subtree: str = "params") -> tuple[Any, dict[str, Any]]:
    """A part of a checkpoint's state, e.g. "params/encoder", as NumPy arrays, and the checkpoint's card.

    `checkpoint` is a folder, of which that part only is read, or a network in one file (`weights.py`). Raises InputError if it is neither,
    is damaged, or has no such part.
    """
    wanted = subtree.split("/")
    if checkpoint.suffix == weights.SUFFIX:
        params, described = weights.read(checkpoint)
        return _part({"params": params}, wanted, checkpoint), described
    # First of all: Orbax has much to say of what is damaged.
    if (checkpoint / STATE).is_dir() and (fault := verify(checkpoint)):
        raise InputError(f"{checkpoint}: cannot be trusted, {fault}; use another checkpoint of the run")
    described = card(checkpoint)
    metadata = ocp.metadata(checkpoint.absolute(), checkpointable_name=STATE)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def choose(keys: Any, leaf: Any) -> Any:
        names = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys]
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) if names[: len(wanted)] == wanted else ocp.PLACEHOLDER

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


def card(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says about itself; of a folder's the numbers are not read. Raises InputError if it is none."""
    if checkpoint.suffix == weights.SUFFIX:
        return weights.read(checkpoint)[1]
    if checkpoint.suffix in (".pt", ".pth"):
        raise InputError(
            f"{checkpoint}: is a file of weights; make a checkpoint of it with python -m converters.convert {checkpoint} FOLDER"
        )
    if not (checkpoint / STATE).is_dir():
        raise InputError(f"{checkpoint}: is no checkpoint; give the folder of one step, runs/NAME/checkpoints/STEP")
    return dict(ocp.metadata(checkpoint.absolute(), checkpointable_name=STATE).custom_metadata or {})


def write(checkpoint: Path, params: Any, card: dict[str, Any]) -> None:
    """One sealed checkpoint that holds parameters only, as a converter makes it; the folder must not exist yet.

    Raises InputError where nothing can be written.
    """
    check_place(checkpoint)  # Orbax would try for minutes
    context = ocp.Context()
    context.array.saving.use_compression = False
    with context:
        ocp.save_checkpointables(checkpoint.absolute(), {STATE: {"params": params}}, custom_metadata=card)
    _seal(checkpoint)


def _seal_after(response: Any, checkpoint: Path) -> None:
    response.result()
    _seal(checkpoint)


def _seal(checkpoint: Path) -> None:
    if jax.process_index() == 0:
        names = sorted(str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file())
        write_text(checkpoint / SEAL, json.dumps({name: _digest(checkpoint / name) for name in names}, indent=1))


def _clear_unsealed(folder: Path) -> None:
    """Removes checkpoints that a run was killed while saving: whole for Orbax, but not known to be so."""
    for checkpoint in folder.glob("[0-9]*"):
        if checkpoint.name.isdigit() and not (checkpoint / SEAL).exists():
            shutil.rmtree(checkpoint)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
