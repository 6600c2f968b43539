"""A disk that fills up under a training, its cache or a prediction; then there is room, and the same command goes on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from trials import command, training
from trials.ledger import HELD, SKIPPED, TRACEBACK, Verdict
from trials.pairs import same_predictions

ROOM = 256  # MiB, when room has been made


def trial(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """A tmpfs of a size at random, on which one of the three lies."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mount"):
        return Verdict(SKIPPED, "only root may mount a small disk")
    what = ("run", "cache", "prediction")[rng.choice(3, p=(0.6, 0.2, 0.2))]
    most = {"run": 16000, "cache": 160, "prediction": 400}[what]
    size, disk = int(rng.integers(4, most // 4)) * 4, folder / "disk"
    disk.mkdir()
    done = mount(disk, f"size={size}k")
    if done.returncode:
        return Verdict(SKIPPED, f"nothing can be mounted: {done.stderr.strip()}")
    try:
        shared = command.segments_now()
        run = disk / "run" if what == "run" else folder / "run"
        cache = disk / "volumes" if what == "cache" else material / "volumes"
        words = training.train(material, run, cache)
        if what == "prediction":
            words = training.predict(material, material / "heads" / "scans", disk / "out")
        ended = command.run(words, folder, **training.compiled(material))
        found = command.fault(ended, {0: "finished|segmented", 2: "^error: |\nerror: "})
        if not found and ended.code == 2 and str(disk) not in ended.err[0]:
            found = Verdict(TRACEBACK, f"does not name a file on the full disk: {command.last(ended)}")
        if not found:
            mount(disk, f"remount,size={ROOM}m")
            if what == "prediction":
                after = command.run(words, folder, **training.compiled(material))
                found = command.fault(after, {0: "segmented"}) or same_predictions(material, disk / "out")
            else:
                found = training.finish(material, run, cache, folder)
        found = command.settled(command.outcome(ended) if found.outcome == HELD else found, folder, shared, (disk,))
        return found._replace(detail=f"{what} on {size} KiB, exit code {ended.code}; {found.detail}")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def mount(disk: Path, options: str) -> subprocess.CompletedProcess:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, text=True, check=False)
