"""Guards of the product, each taken away in a copy of the tree: the test that is there for it has to fail then, and to pass before."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from trials.command import ROOT
from trials.ledger import HELD, SKIPPED, WRONG, Verdict


class Guard(NamedTuple):
    """What is guarded against; the file and the text in it that does so; the text without; the one test that must notice."""

    what: str
    file: str
    old: str
    new: str
    test: str


GUARDS = (
    Guard(
        "a damaged checkpoint",
        "brainseg_jax/weights/checkpoint.py",
        "if (most is None or file.stat().st_size <= most) and _digest(file) != sealed[name]:",
        "if False:",
        "tests/weights/test_checkpoint.py::test_one_flipped_bit_is_noticed_and_the_older_checkpoint_used",
    ),
    Guard(
        "a damaged network file, its card included",
        "brainseg_jax/weights/single_file.py",
        "if not (metadata[SEAL] == _seal(arrays, text) if SEAL in metadata else metadata.get(CHECKSUM) == _checksum(arrays)):",
        "if False:",
        "tests/weights/test_single_file.py::test_a_flipped_bit_is_noticed",
    ),
    Guard(
        "a damaged compressed scan",
        "brainseg_jax/data/nifti.py",
        "tail = stream.read(MGH_TAIL + 1)",
        'tail = b""',
        "tests/data/test_nifti.py::test_bit_flips_are_noticed_or_harmless",
    ),
    Guard(
        "a header that claims more than memory",
        "brainseg_jax/data/nifti.py",
        "if max(layout.offset + layout.size, 4 * math.prod(layout.shape)) > LIMIT:",
        "if False:",
        "tests/data/test_nifti.py::test_the_limit_is_checked_before_reading",
    ),
    Guard(
        "left and right that contradict each other",
        "brainseg_jax/data/nifti.py",
        "if affine_checks.opposed(forms[0].affine, forms[-1].affine):",
        "if False:",
        "tests/data/test_nifti.py::test_refused_by_name_in_one_line",
    ),
    Guard(
        "code in a torch file",
        "converters/torchfile.py",
        'if "." in name or not (full in _CALLS or full in _STORAGES or full in _DTYPES):',
        "if False:",
        "tests/converters/test_torchfile.py::test_a_class_is_refused_by_its_name",
    ),
    Guard(
        "a torch file that unpacks to far more than it is",
        "converters/torchfile.py",
        "if entry.file_size > RATIO * entry.compress_size or (stored and entry.file_size != entry.compress_size):",
        "if False:",
        "tests/converters/test_torchfile.py::test_bombs",
    ),
    Guard(
        "names that are markup on the page",
        "brainseg_jax/qc/report.py",
        "from html import escape",
        "escape = str",
        "tests/qc/test_report.py::test_no_name_becomes_markup",
    ),
    Guard(
        "files that are written in part",
        "brainseg_jax/core/files.py",
        "            yield part\n            part.replace(path)",
        "            yield path",
        "tests/core/test_files.py::test_an_error_leaves_the_old_file_and_nothing_else",
    ),
    Guard(
        "two trainings in one folder",
        "brainseg_jax/training/run_lock.py",
        "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/training/test_loop.py::test_a_run_folder_has_one_run",
    ),
    Guard(
        "going on with other people",
        "brainseg_jax/training/run_records.py",
        'if before.get("volumes_sha256") != data.volumes_sha256:',
        "if False:",
        "tests/training/test_run_records.py::test_other_volumes_another_order_or_another_side_are_refused",
    ),
    Guard(
        "scans replaced under the same name",
        "brainseg_jax/training/run_records.py",
        "    if changed:",
        "    if False:",
        "tests/training/test_run_records.py::test_what_was_replaced_under_the_same_name_is_named",
    ),
    Guard(
        "cells that a spreadsheet would compute",
        "brainseg_jax/core/files.py",
        "if str(cell).startswith(FORMULAS) and not _is_number(str(cell)) else cell for cell in line]",
        "if False else cell for cell in line]",
        "tests/core/test_files.py::test_spreadsheets_compute_nothing_of_a_table_and_numbers_stay_numbers",
    ),
    Guard(
        "label maps that were damaged after prediction",
        "brainseg_jax/inference/resume.py",
        "if digest(str(case.labels)) == written.get(case.labels.name):",
        "if True:",
        "tests/cli/test_predict.py::test_a_label_map_that_was_damaged_afterwards_is_noticed",
    ),
    Guard(
        "weights that are named twice",
        "brainseg_jax/weights/safetensors.py",
        "json.loads(text, object_pairs_hook=_unique)",
        "json.loads(text)",
        "tests/weights/test_safetensors.py::test_refused_in_one_line",
    ),
)


def trial(guard: Guard, material: Path, rng: np.random.Generator, folder: Path) -> Verdict:
    """The test before and after the guard is taken away. A patch that does not fit any longer is a bad end: the list is to be mended."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        return Verdict(SKIPPED, "not in a clone: which files belong to the tree is not known")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "tree" / name)
    place = folder / "tree" / guard.file
    text = place.read_text()
    if text.count(guard.old) != 1:
        return Verdict(WRONG, f"{guard.file}: {guard.old!r} stands there {text.count(guard.old)} times, not once; mend the list of guards")
    code, words = tested(folder / "tree", guard.test)
    if code or "passed" not in words or "skipped" in words:
        return Verdict(SKIPPED if "skipped" in words else WRONG, f"with the guard: {words}")
    place.write_text(text.replace(guard.old, guard.new))
    code, words = tested(folder / "tree", guard.test)
    # 1: tests failed; others: nothing was tested.
    return Verdict(HELD if code == 1 and "failed" in words and "error" not in words else WRONG, f"without the guard: {words}")


def tested(tree: Path, test: str) -> tuple[int, str]:
    """pytest's exit code and its last line."""
    own = dict(os.environ) | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-m", "pytest", "-n0", "--durations=0", "-p", "no:cacheprovider", "--tb=no", test]
    done = subprocess.run(words, cwd=tree, env=own, capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]
