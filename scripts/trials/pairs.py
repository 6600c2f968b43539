"""Two at once: trainings in one folder, builders of one cache, predictions to one folder, and a prediction by what is being written."""

import time
from pathlib import Path

import numpy as np
from trials import command, training
from trials.equality import equal
from trials.ledger import HELD, LOST, WRONG, Verdict

from brainseg_jax.data.nifti import read_labels


def trial(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """One of the four, the second command beginning up to ten seconds after the first."""
    act = ACTS[rng.integers(len(ACTS))]
    shared = command.segments_now()
    found = command.settled(act(material, rng, folder), folder, shared, (folder,))
    return found._replace(detail=f"{act.__name__.replace('_', ' ')}; {found.detail}")


def both(material: Path, folder: Path, first: list[str], second: list[str], seconds: float) -> list[command.Ended]:
    """Two commands, the second one so much later."""
    processes = [command.begin(first, folder, **training.compiled(material))]
    time.sleep(seconds)
    processes.append(command.begin(second, folder, **training.compiled(material)))
    return [command.end(process) for process in processes]


def two_trainings_in_one_folder(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    words = training.train(material, folder / "run", material / "volumes")
    ended = both(material, folder, words, words, float(rng.uniform(0, 10)))
    for one in ended:
        if found := command.fault(one, {0: "finished", 2: "another run is training in it"}):
            return found
    if all(one.code for one in ended):
        return Verdict(LOST, "neither of them trained")
    return training.compared(material / "run", folder / "run")


def two_builders_of_one_cache(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    words = [training.train(material, folder / name, folder / "volumes") for name in ("one", "other")]
    ended = both(material, folder, *words, float(rng.uniform(0, 2)))
    found = next((found for one in ended if (found := command.fault(one, {0: "finished"}))), None)
    results = (training.compared(material / "run", folder / name) for name in ("one", "other"))
    return found or next((result for result in results if result.outcome != HELD), Verdict(HELD, ""))


def two_predictions_to_one_folder(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    words = training.predict(material, material / "heads" / "scans", folder / "out")
    ended = both(material, folder, words, words, float(rng.uniform(0, 6)))
    found = next((found for one in ended if (found := command.fault(one, {0: "segmented"}))), None)
    return found or same_predictions(material, folder / "out")


def a_prediction_by_a_checkpoint_that_is_being_written(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    run = folder / "run"
    process = command.begin(training.train(material, run, material / "volumes"), folder, **training.compiled(material))
    verdict = Verdict(HELD, "")
    while process.runs():
        newest = max((p for p in (run / "checkpoints").glob("[0-9]*")), key=lambda p: p.stat().st_mtime if p.exists() else 0, default=None)
        if newest is None:
            time.sleep(0.01)
            continue
        words = [
            *training.predict(material, material / "heads" / "scans" / "head0.nii.gz", folder / "out")[:3],
            f"--checkpoint={newest}",
            "--overwrite",
        ]
        ended = command.run(words, folder, **training.compiled(material))
        if found := command.fault(ended, {0: "segmented", 2: "^error: |\nerror: ", 3: "could not be segmented"}):
            verdict = found
        elif ended.code and verdict.outcome == HELD:
            verdict = command.outcome(ended)
    ended = command.end(process)
    found = command.fault(ended, {0: "finished"})
    if found or verdict.outcome not in (HELD, "noticed"):
        return found or verdict
    result = training.compared(material / "run", run)
    return verdict if result.outcome == HELD else result


def same_predictions(material: Path, out: Path) -> Verdict:
    """Whether the label maps of a folder are those of the undisturbed prediction."""
    expected = sorted((material / "predicted").glob("*_seg.nii.gz"))
    for file in expected:
        if not (out / file.name).exists():
            return Verdict(LOST, f"{file.name} is missing")
        if not equal(tuple(read_labels(file)), tuple(read_labels(out / file.name))):
            return Verdict(WRONG, f"{file.name} is another one")
    tables = [(place / "volumes.csv").read_bytes() for place in (material / "predicted", out)]
    return Verdict(HELD, "") if tables[0] == tables[1] else Verdict(WRONG, "volumes.csv is another one")


ACTS = (
    two_trainings_in_one_folder,
    two_builders_of_one_cache,
    two_predictions_to_one_folder,
    a_prediction_by_a_checkpoint_that_is_being_written,
)
