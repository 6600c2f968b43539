"""A finished run with one damaged file, whichever, given to the real commands: to the training that goes on, and to prediction."""

from pathlib import Path

import numpy as np
from trials import command, training
from trials.damage import harmed
from trials.equality import equal
from trials.ledger import HELD, LOST, NOTICED, UNKNOWABLE, WRONG, Verdict

from brainseg_jax.data.nifti import read_labels

UNREAD = ("tb", "pictures")  # for people to look at; no command reads them again


def trial(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """One harm to a file of the last checkpoint, half of the times, or of the run."""
    run, shared = training.copied(material, folder), command.segments_now()
    last = run / "checkpoints" / str(training.STEPS)
    files = sorted(p for p in (last if rng.random() < 0.5 else run).rglob("*") if p.is_file() and p.parent.name not in UNREAD)
    file = files[rng.integers(len(files))]
    before = file.read_bytes()
    content, words = harmed(before, rng) if before else (None, "deleted")
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    act = predicted if file.is_relative_to(last) and rng.random() < 0.4 else gone_on
    found = command.settled(act(material, run, folder, file, before), folder, shared, (run,))
    return found._replace(detail=f"{act.__name__}, {file.relative_to(run)}: {words}; {found.detail}")


def gone_on(material: Path, run: Path, folder: Path, file: Path, before: bytes) -> Verdict:
    """The training: finished as it was, from the checkpoint before if need be, or one line."""
    ended = command.run(training.train(material, run, material / "volumes"), folder, **training.compiled(material))
    if found := command.fault(ended, {0: f"finished: {training.STEPS} steps", 2: str(run)}):
        return found
    if ended.code:
        kept = any((run / "checkpoints").glob("[0-9]*"))
        return command.outcome(ended) if kept else Verdict(LOST, f"no checkpoint is left: {command.last(ended)}")
    result = training.compared(material / "run", run)
    if result.outcome != HELD and file.name in ("metrics.jsonl", "config.json", "run.json") and len(file.read_bytes()) >= len(before):
        return Verdict(UNKNOWABLE, result.detail)
    if result.outcome == HELD and "passed over" in ended.out:
        return Verdict(NOTICED, next(line for line in ended.out.splitlines() if "passed over" in line)[:300])
    if result.outcome == HELD and "going on from step" in ended.out:
        return Verdict(LOST, "did steps again without a word why")
    return result


def predicted(material: Path, run: Path, folder: Path, file: Path, before: bytes) -> Verdict:
    """The prediction: as ever, or one line."""
    scan, out = material / "heads" / "scans" / "head0.nii.gz", folder / "out"
    words = [*training.predict(material, scan, out)[:3], f"--checkpoint={run / 'checkpoints' / str(training.STEPS)}"]
    ended = command.run(words, folder, **training.compiled(material))
    if found := command.fault(ended, {0: "segmented", 2: str(run)}):
        return found
    if ended.code:
        return command.outcome(ended)
    same = equal(*(tuple(read_labels(place / "head0_seg.nii.gz")) for place in (material / "predicted", out)))
    return Verdict(HELD, "") if same else Verdict(WRONG, "other labels")
