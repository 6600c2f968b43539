"""A training that is killed up to three times at random moments, and then left alone: it ends as one that nothing interrupted."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
from trials import command, training
from trials.ledger import LOST, Verdict

from brainseg_jax.core.files import SEAL
from brainseg_jax.training.metrics_log import read_metrics

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
PHASES = ("start-up", "steps", "evaluation", "checkpoint")
# How a run may end that was asked to: at once while it starts; else saved, at a step.
STOPPED = r"stopped at step|finished"
CODES = {
    signal.SIGKILL: {-9: "", 0: "finished"},
    signal.SIGINT: {0: STOPPED, 130: "stopped"},
    signal.SIGUSR1: {0: STOPPED, -10: ""},
    signal.SIGTERM: {0: STOPPED, -15: "", 143: ""},
}


def trial(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """One run, its kills and its end. One in four standardises its scans anew, one in three reads ahead in processes."""
    run, shared = folder / "run", command.segments_now()
    cache = folder / "volumes" if rng.random() < 0.25 else material / "volumes"
    changes = {"data.workers": 2} if rng.random() < 0.34 else {}
    words = []
    for _ in range(rng.integers(1, 4)):
        number, phase = SIGNALS[rng.integers(len(SIGNALS))], PHASES[rng.integers(len(PHASES))]
        process = command.begin(training.train(material, run, cache, **changes), folder, **training.compiled(material))
        wait_for(phase, process, run, rng)
        whole = number == signal.SIGINT and rng.random() < 0.5  # a terminal's Ctrl-C reaches the children, too
        seen = step(run)
        (os.killpg if whole else os.kill)(process.pid, number)
        ended = command.end(process)
        words.append(f"{number.name}{' to all' * whole} in {phase} near step {seen}, exit code {ended.code}")
        if found := command.fault(ended, CODES[number]) or command.left(folder) or lost(ended, run):
            return found._replace(detail=f"{'; '.join(words)}{changes or ''}; {found.detail}")
    found = command.settled(training.finish(material, run, cache, folder, **changes), folder, shared, (run, cache))
    return found._replace(detail=f"{'; '.join(words)}{changes or ''}; {found.detail}")


def lost(ended: command.Ended, run: Path) -> Verdict | None:
    """A run that says it stopped at a step, saved, has to have saved that step."""
    said = re.search(r"stopped at step (\d+), saved", ended.out)
    if said and int(said[1]) != training.sealed(run):
        return Verdict(LOST, f"says that step {said[1]} is saved, and {training.sealed(run)} is")
    return None


def wait_for(phase: str, process: command.Process, run: Path, rng: np.random.Generator) -> None:
    """Until a moment of that phase, or until the run has ended."""
    until, seconds = time.monotonic() + command.SECONDS, float(rng.uniform(0, 12 if phase == "start-up" else 0.15))
    first, target = step(run), int(rng.integers(1, training.STEPS))
    known = {p.name for p in (run / "checkpoints").glob("*")}
    while phase != "start-up" and process.runs() and time.monotonic() < until:
        now = step(run)
        if phase == "steps" and now != first and now >= target:
            break
        # A line of metrics every third step, an evaluation every tenth: that of step 9, 18, 30 or 39 comes just before one.
        if phase == "evaluation" and now != first and now >= target and any(0 <= at - now <= 1 for at in (10, 20, 30, 40)):
            break
        if (
            phase == "checkpoint"
            and now >= min(target, 30)
            and any(begun(p) for p in (run / "checkpoints").glob("*") if p.name not in known)
        ):
            break
        time.sleep(0.002)
    ends = time.monotonic() + seconds
    while process.runs() and time.monotonic() < ends:
        time.sleep(0.002)


def begun(place: Path) -> bool:
    """Whether a checkpoint is being written there."""
    return not (place / SEAL).exists()


def step(run: Path) -> int:
    """The last step that metrics.jsonl tells of."""
    rows = read_metrics(run / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0
