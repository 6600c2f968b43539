"""A run's checkpoints with a damaged file in the newest: the one before it is gone back to, said, and nothing else is touched."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from trials.bounds import tried
from trials.damage import harmed
from trials.equality import equal
from trials.ledger import HELD, LOST, NOTICED, WRONG, Verdict

from brainseg_jax.core.files import SEAL
from brainseg_jax.training.step import TrainState
from brainseg_jax.weights.checkpoint import Checkpoints, load

CARD = {"config": {"seed": {"value": 0, "from": "default"}}, "subjects": ["a", "b"]}


def state(step: int) -> TrainState:
    """A small state with the types that a run has."""
    rng = np.random.default_rng(step)
    params = {
        "encoder": {"kernel": rng.normal(size=(16, 8)).astype(np.float32), "bias": rng.normal(size=8).astype(np.float32)},
        "head": {"kernel": np.asarray(rng.normal(size=(8, 2)), jnp.bfloat16)},
    }
    whole = TrainState(np.int32(step), params, ((), (np.int32(step), jax.tree.map(lambda a: a * 2, params))))
    return jax.tree.map(lambda a: jax.device_put(a, jax.devices()[0]), whole)


def make(folder: Path) -> None:
    """Two checkpoints, of steps 1 and 2."""
    with Checkpoints(folder, "loss") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), CARD, {"loss": 1 / step})


def trial(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """One harm to one file, or the loss of all seals; then the run goes on, or the checkpoint is loaded as prediction does it."""
    place = folder / "checkpoints"
    shutil.copytree(material / "checkpoints", place)
    files = sorted(p for p in (place / "2").rglob("*") if p.is_file())
    if rng.random() < 0.02:
        words = "all seals deleted"
        for seal in place.glob(f"*/{SEAL}"):
            seal.unlink()
    else:
        file = files[rng.integers(len(files))]
        content, words = harmed(file.read_bytes(), rng)
        words = f"{file.relative_to(place)}: {words}"
        file.unlink()
        if content is not None:
            file.write_bytes(content)
    older = {p: p.read_bytes() for p in (place / "1").rglob("*") if p.is_file()}
    verdict = loaded(place) if rng.random() < 0.3 else gone_on(place)
    if any(not p.exists() or p.read_bytes() != content for p, content in older.items()):
        verdict = Verdict(LOST, f"the older checkpoint was changed or deleted ({verdict.outcome}: {verdict.detail})")
    return verdict._replace(detail=f"{words}; {verdict.detail}")


def gone_on(place: Path) -> Verdict:
    """What a run would go on from."""
    said: list[str] = []
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state(0))

    def call() -> Any:
        with Checkpoints(place, "loss") as checkpoints:
            return checkpoints.restore_latest(like, said.append)

    def judge(found: Any) -> Verdict:
        if found is None:
            return Verdict(LOST, "starts from the beginning")
        if equal(jax.device_get(found), jax.device_get(state(2))):
            return Verdict(HELD, "")
        if not equal(jax.device_get(found), jax.device_get(state(1))):
            return Verdict(WRONG, "another state")
        return Verdict(NOTICED, said[0][:300]) if said else Verdict(LOST, "goes on from the older one without a word")

    return tried(call, str(place), judge)


def loaded(place: Path) -> Verdict:
    """What prediction would use."""
    expected = jax.device_get(state(2)).params

    def judge(found: Any) -> Verdict:
        return Verdict(HELD, "") if equal(found[0], expected) and found[1] == CARD else Verdict(WRONG, "other parameters, or another card")

    return tried(lambda: load(place / "2"), str(place), judge)
