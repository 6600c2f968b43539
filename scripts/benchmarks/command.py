"""`python -m brainseg_jax.predict` as a user meets it, with the network that comes with the package: from the shell to label maps on disk.

The scan is Colin27 in a field of view of 256³ voxels of 1 mm. "The first time" begins with nothing compiled, as after installation.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measure import Result

from brainseg_jax.data.nifti import read
from brainseg_jax.data.nifti_write import write

EDGE, SCANS = 256, 5
TIMES = {"first": "the first time", "again": "again", "folder": f"a folder of {SCANS}"}


def predict(args: argparse.Namespace) -> tuple[str, Any]:
    """Seconds, processor seconds and peak memory of one scan, the first time and again, and of a folder."""
    turns: list[dict[str, Result]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans(folder)
        for _ in range(args.turns):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            turns.append({when: once(folder, "scans" if when == "folder" else "scans/1.nii.gz") for when in TIMES})
            print({when: round(found["seconds"], 1) for when, found in turns[-1].items()}, file=sys.stderr)
    middle = {when: {key: statistics.median(turn[when][key] for turn in turns) for key in turns[0][when]} for when in TIMES}
    each = (middle["folder"]["seconds"] - middle["again"]["seconds"]) / (SCANS - 1)
    lines = ["| | seconds (median) | processor seconds | peak memory, GiB |", "|---|---|---|---|"]
    lines += [f"| {TIMES[when]} | {m['seconds']:.1f} | {m['processor']:.1f} | {m['memory'] / 2**30:.2f} |" for when, m in middle.items()]
    lines += [
        f"| each further scan of a folder | {each:.1f} | | |",
        "",
        f"From the command to a label map, start-up included; Colin27 at 1 mm in {EDGE}³ voxels; median of {args.turns}.",
    ]
    return "\n".join(lines), turns


def scans(folder: Path) -> None:
    """`scans/1.nii.gz` and its copies."""
    head = read(Path(str(resources.files("brainseg_jax.data") / "sample_files" / "colin27_T1_head.nii.gz")))
    before = [(EDGE - n) // 2 for n in head.voxels.shape]
    voxels = np.pad(head.voxels, [(b, EDGE - n - b) for b, n in zip(before, head.voxels.shape, strict=True)])
    affine = head.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    write(folder / "scans" / "1.nii.gz", np.rint(voxels).astype(np.int16), affine)
    for n in range(2, SCANS + 1):
        shutil.copy(folder / "scans" / "1.nii.gz", folder / "scans" / f"{n}.nii.gz")


def once(folder: Path, what: str) -> Result:
    """One run of the command."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    # The command decides on huge pages by itself.
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"} | {"XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", "brainseg_jax.predict", "--i", str(folder / what), "--o", str(folder / "out")]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed; run it by hand to see why")
    return {"seconds": seconds, "processor": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss * 1024}
