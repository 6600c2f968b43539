"""What a finished run wrote about itself, damaged: config.json, run.json, metrics.jsonl, split.tsv; then it is asked for again."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from trials import training
from trials.bounds import tried
from trials.damage import harmed
from trials.ledger import HELD, LOST, NOTICED, UNKNOWABLE, WRONG, Verdict

from brainseg_jax.config.keys import base
from brainseg_jax.config.resolve import with_sources
from brainseg_jax.training.loop import train
from brainseg_jax.training.program import resolve_auto

SECONDS = 120  # a training that is asked for again may take
FILES = ("config.json", "run.json", "metrics.jsonl", "split.tsv")


def trial(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """One harm to one of the files; one time in four the last checkpoint is gone as well, and the run has five steps to do."""
    run = training.copied(material, folder)
    file = run / FILES[rng.integers(len(FILES))]
    before = file.read_bytes()
    after, words = harmed(before, rng)
    file.unlink()
    if after is not None:
        file.write_bytes(after)
    words = f"{file.name}: {words}"
    if rng.random() < 0.25:
        shutil.rmtree(run / "checkpoints" / str(training.STEPS))
        words += ", five steps to do"
    steps = training.sealed(run)
    out = io.StringIO()

    def judge(_: Any) -> Verdict:
        text = out.getvalue()
        if f"finished: {training.STEPS} steps" not in text:
            return Verdict(WRONG, f"does not say that it is finished: {text[-200:]}")
        complaints = [line for line in text.splitlines() if file.name in line and "--splits" not in line]
        if complaints:
            return Verdict(NOTICED, complaints[0][:300])
        now = file.read_bytes() if file.exists() else b""
        if same(file.name, now, before, steps):
            return Verdict(HELD, "")
        # Plain text has no checksum; but the split's hash stands in run.json, and what is missing can be seen to be.
        if file.name == "split.tsv" or after is None or len(after) < len(before):
            return Verdict(WRONG, "another content, or none, without a word")
        return Verdict(UNKNOWABLE, "another text")

    verdict = tried(lambda: again(material, run, out), str(run), judge, SECONDS)
    if training.sealed(run) < steps:
        verdict = Verdict(LOST, f"checkpoint {steps} is gone; {verdict.outcome}: {verdict.detail}")
    return verdict._replace(detail=f"{words}; {verdict.detail}")


def again(material: Path, run: Path, out: io.StringIO) -> None:
    """The training within this process, as the command does it."""
    config = base()
    places = {"data.manifest": str(material / "heads" / "people.tsv"), "data.cache": str(material / "volumes")}
    config.update_from_flattened_dict(training.KEYS | places)
    resolved = with_sources(config, set(), "configs/pretrain_vit.py")
    resolve_auto(config, jax.default_backend() == "cpu", resolved)
    with contextlib.redirect_stdout(out):
        train(config, resolved, run)


def same(name: str, now: bytes, before: bytes, steps: int) -> bool:
    """Whether a record says what it said, apart from that the run was started again."""
    if name == "metrics.jsonl":
        return facts(now, steps) == facts(before, steps)
    if name == "run.json":
        with contextlib.suppress(ValueError, KeyError, TypeError):
            a, b = (json.loads(text) for text in (now, before))
            return a["starts"][: len(b["starts"])] == b["starts"] and {**a, "starts": 0} == {**b, "starts": 0}
        return False
    with contextlib.suppress(ValueError):
        return now == before or (name == "config.json" and json.loads(now) == json.loads(before))
    return False


def facts(text: bytes, steps: int) -> list[dict[str, Any]] | None:
    """The rows of a metrics.jsonl, those of steps that were done anew without their times; None if it is none."""
    with contextlib.suppress(ValueError, AttributeError, KeyError):
        rows = [json.loads(line) for line in text.splitlines()]
        return [{k: v for k, v in row.items() if row["step"] <= steps or k not in training.TIMINGS} for row in rows]
    return None
