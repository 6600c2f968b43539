"""The training that is killed, starved and raced: a network of 200 thousand parameters that learns to find the brain of four made heads."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from trials import command
from trials.equality import equal
from trials.ledger import HELD, LOST, TRACEBACK, WRONG, Verdict

from brainseg_jax.core.files import SEAL
from brainseg_jax.data.manifest import Row, write_manifest
from brainseg_jax.data.nifti_write import write
from brainseg_jax.training.metrics_log import read_metrics
from brainseg_jax.weights import checkpoint

STEPS = 40
KEYS: dict[str, Any] = {
    "steps": STEPS, "log_every": 3, "eval_every": 0.25, "save_every": 7, "dtype": "float32", "mesh.data": 1,
    "data.spacing": 4.0, "data.size": (32, 32, 32), "data.crop": (32, 32, 32), "data.batch": 2, "data.threads": 1,
    "objective": "segmentation", "data.labels": "brain", "classes": 2, "augment.mirror.sides": 0.5, "optim.lr": 3e-3,
    "vit.patch": 16, "vit.width": 24, "vit.depth": 4, "vit.features": (0, 1, 2), "vit.heads": 2, "vit.hidden": 48, "unetr.width": 4,
}  # fmt: skip
TIMINGS = ("time", "crops_per_second", "input_wait")


def make(folder: Path) -> None:
    """The heads, a run that nothing interrupts, and what its network finds in three of the heads."""
    heads(folder / "heads")
    for words in (train(folder, folder / "run", folder / "volumes"), predict(folder, folder / "heads" / "scans", folder / "predicted")):
        ended = command.run(words, folder, 600, **compiled(folder))
        if ended.code != 0:
            raise SystemExit(f"the undisturbed command failed, python -m {' '.join(map(str, words))}: {command.last(ended)}")


def heads(folder: Path) -> None:
    """Four ellipsoids with texture, 40³ voxels of 4 mm, with masks of what is bright in them."""
    rng = np.random.default_rng(1)
    at = (np.indices((40, 40, 40)).reshape(3, -1).T - 19.5) / (15, 17, 16)
    inside = (np.sum(at**2, axis=1) < 1).reshape(40, 40, 40)
    rows = []
    for i, split in enumerate(("train", "train", "train", "val")):
        voxels = np.where(inside, rng.normal(100 + 10 * i, 15, inside.shape), rng.normal(5, 1, inside.shape)).clip(0)
        image, mask = folder / "scans" / f"head{i}.nii.gz", folder / "masks" / f"head{i}.nii.gz"
        write(image, voxels.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))
        write(mask, (voxels > 50).astype(np.uint8), np.diag([4.0, 4.0, 4.0, 1.0]))
        rows.append(Row(f"head{i}", "", image, (mask,), ("brain",), "made", split))
    write_manifest(folder / "people.tsv", rows)


def compiled(material: Path) -> dict[str, str]:
    """Where compiled programs are kept, so that each is compiled once."""
    keep = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    return {"JAX_COMPILATION_CACHE_DIR": str(material / "compiled")} | keep


def train(material: Path, workdir: Path, cache: Path, **changes: Any) -> list[str]:
    """The words of the command that trains, or goes on."""
    places = {"data.manifest": material / "heads" / "people.tsv", "data.cache": cache}
    values = [f"--config.{key}={value}" for key, value in (KEYS | places | changes).items()]
    return ["brainseg_jax.main", "--config=configs/pretrain_vit.py", f"--workdir={workdir}", *values]


def predict(material: Path, scans: Path, out: Path, *more: str) -> list[str]:
    """The words of the command that segments with the run's network."""
    network = material / "run" / "checkpoints" / str(STEPS)
    tables = (f"--vol={out / 'volumes.csv'}", f"--qc={out / 'qc.html'}")
    return ["brainseg_jax.predict", f"--i={scans}", f"--o={out}", f"--checkpoint={network}", *tables, *more]


def sealed(run: Path) -> int:
    """The newest step that was wholly saved; 0 if none was."""
    return max((int(p.parent.name) for p in (run / "checkpoints").glob(f"*/{SEAL}") if p.parent.name.isdigit()), default=0)


def finish(material: Path, run: Path, cache: Path, folder: Path, **changes: Any) -> Verdict:
    """Starts a run once more, undisturbed, and compares all it leaves with what the undisturbed run left."""
    before = sealed(run)
    ended = command.run(train(material, run, cache, **changes), folder, **compiled(material))
    if found := command.fault(ended, {0: f"finished: {STEPS} steps"}):
        return found
    went_on = int((re.findall(r"going on from step (\d+)", ended.out) or [before if before == STEPS else 0])[0])
    if went_on < before:
        return Verdict(LOST, f"went on from step {went_on}, though {before} was saved")
    return compared(material / "run", run)


def compared(whole: Path, run: Path) -> Verdict:
    """Whether two finished runs left the same: parameters, moments, metrics but for times, pictures, split, and no other files."""
    for part in ("params", "opt_state"):
        if not equal(*(checkpoint.load(place / "checkpoints" / str(STEPS), part)[0] for place in (whole, run))):
            return Verdict(WRONG, f"{part} differ")
    rows = [[{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(p / "metrics.jsonl")] for p in (whole, run)]
    if rows[0] != rows[1]:
        lacking, other = ([row for row in rows[i] if row not in rows[1 - i]] for i in (0, 1))
        if {(row["step"], row["kind"]) for row in lacking} - {(row["step"], row["kind"]) for row in other}:
            return Verdict(LOST, f"rows of metrics.jsonl are missing: {lacking[:2]}")
        return Verdict(WRONG, f"rows of metrics.jsonl differ: {other[:1]} for {lacking[:1]}")
    names = [
        {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file() and not outside(p.relative_to(place))} for place in (whole, run)
    ]
    if names[0] != names[1]:
        return Verdict(TRACEBACK if names[1] - names[0] else LOST, f"files that are there, or missing: {sorted(names[0] ^ names[1])[:5]}")
    same = [name for name in names[0] if name.startswith("pictures") or name == "split.tsv"]
    differing = [name for name in same if (whole / name).read_bytes() != (run / name).read_bytes()]
    return Verdict(WRONG, f"differ: {differing}") if differing else Verdict(HELD, "")


def outside(name: Path) -> bool:
    """Files that depend on when a run was stopped: what was saved then, and what TensorBoard is told by each process."""
    return name.parts[0] in ("checkpoints", "tb") or name.name == ".lock"


def copied(material: Path, folder: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(material / "run", folder / "run"))


def starts(run: Path) -> int:
    """How often a run says that it was started."""
    return len(json.loads((run / "run.json").read_text())["starts"])
