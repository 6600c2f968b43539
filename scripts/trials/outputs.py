"""What prediction wrote, damaged: label maps, sidecars, tables, what the page shows; then the same prediction is asked for again."""

import contextlib
import io
import shutil
from pathlib import Path

import numpy as np
from trials import training
from trials.bounds import tried
from trials.damage import harmed
from trials.equality import equal
from trials.ledger import HELD, NOTICED, TRACEBACK, UNKNOWABLE, WRONG, Verdict

from brainseg_jax.cli.predict import main
from brainseg_jax.core.errors import InputError
from brainseg_jax.data.nifti import read_labels

SECONDS = 120  # a prediction may take, should it be made again


def trial(material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """One harm to one file, a label map half of the times."""
    out = Path(shutil.copytree(material / "predicted", folder / "predicted"))
    files = sorted(p for p in out.rglob("*") if p.is_file())
    maps = [p for p in files if p.name.endswith("_seg.nii.gz")]
    among = maps if rng.random() < 0.5 else files
    file = among[rng.integers(len(among))]
    before = file.read_bytes()
    after, words = harmed(before, rng)
    file.unlink()
    if after is not None:
        file.write_bytes(after)
    said, complained = io.StringIO(), io.StringIO()

    def call() -> int:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            return main(training.predict(material, material / "heads" / "scans", out)[1:])

    def judge(code: int) -> Verdict:
        lines = complained.getvalue().splitlines()
        if any("Traceback" in line or "please report it" in line for line in lines):
            return Verdict(TRACEBACK, f"exit code {code}: {lines[-1][:300]}")
        named = code in (2, 3) and file.name in complained.getvalue() and (code == 3 or len(lines) == 1)
        if code and not named:
            return Verdict(TRACEBACK, f"exit code {code}: {' | '.join(lines)[:300]}")
        for kept in maps:
            if not same(kept, material / "predicted" / kept.relative_to(out)) and not (named and kept == file):
                return Verdict(WRONG, f"exit code {code}, and {kept.name} is another one, or damaged")
        if code:
            return Verdict(NOTICED, f"exit code {code}: {' | '.join(lines)[:300]}")
        whole = file.exists() and file.read_bytes() == (material / "predicted" / file.relative_to(out)).read_bytes()
        if whole or file in maps or file.suffix == ".html":
            return Verdict(HELD, "" if whole else "the same content")
        return Verdict(WRONG if after is None or len(after) < len(before) else UNKNOWABLE, "another content without a word")

    verdict = tried(call, file.name, judge, SECONDS)
    return verdict._replace(detail=f"{file.relative_to(out)}: {words}; {verdict.detail}")


def same(file: Path, expected: Path) -> bool:
    """Whether a label map can be read and is as it was."""
    try:
        return equal(tuple(read_labels(file)), tuple(read_labels(expected)))
    except InputError:
        return False
