"""Which network, by evidence: candidates trained with equal computing, and what each reaches on scans unlike those it was trained on.

    python scripts/candidates.py train --manifest people.tsv --out runs/candidates

trains the CANDIDATES one after the other, each in OUT/NAME, on the same data, with the same recipe, learning rate and seed. Equal computing
is equal seconds of training steps: each candidate's step is measured once (OUT/steps.json), and HOURS of such steps are its run, whose
learning rate falls to 0 at their end. So neither what else the machine does nor an interruption changes what a run is; the same command
again goes on where it stopped.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import in_process
from benchmarks.presets import written

from brainseg_jax.errors import InputError, exit_code
from brainseg_jax.files import read_text, write_text

ROOT = Path(__file__).parents[1]
STEPS = "steps.json"
TURNS, TIMED = 3, 6  # turns in which steps are measured, each in a fresh process, and steps of a turn
EVALUATED = 0.2  # share of a run between evaluations: they are to watch it, and nothing is chosen by them
# As the network that comes with the package: a brain's labels with the CSF around it, so that all three tasks can be read off.
SHARED = ("data.labels=intracranial",)
SAVED = 150.0  # seconds of steps between checkpoints; a busy machine takes twice as long for them


class Candidate(NamedTuple):
    """A network: what people call it, its config, and the changes KEY=VALUE of it."""

    called: str
    preset: str
    changes: tuple[str, ...] = ()


CANDIDATES = {
    "swin_unetr": Candidate("Swin UNETR, 12 channels", "configs/finetune_swin_unetr.py:thirtythree,any"),
    "unet": Candidate("residual U-Net, 8 to 128 channels", "configs/finetune_unet.py:thirtythree,any"),
    "unet_wide": Candidate(
        "residual U-Net, 16 to 128 channels",
        "configs/finetune_unet.py:thirtythree,any",
        ("unet.features=(16,32,64,96,128)", "unet.blocks=(1,2,2,2,2)"),
    ),
    "unetr": Candidate("UNETR, ViT-S", "configs/finetune_unetr.py:thirtythree,any"),
}


def main() -> int:
    """Trains. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="trains each candidate with equal computing, or goes on with it")
    training.add_argument("--manifest", type=Path, required=True, help="people, and label maps without images (source synth)")
    training.add_argument("--splits", type=Path, help="a split file; by default the manifest's column split")
    training.add_argument("--out", type=Path, required=True, help="the folder of the runs")
    training.add_argument("--hours", type=float, default=2.0, help="of training steps for each candidate (%(default)g)")
    training.add_argument("--only", nargs="+", choices=CANDIDATES, help="some of the candidates")
    training.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change of all candidates' values")
    training.set_defaults(do=train)
    args = parser.parse_args()
    return exit_code(lambda: args.do(args))


def train(args: argparse.Namespace) -> int:
    """Measures all candidates' steps, unless that was done, and trains one after the other; the first that stops early stops all.

    Raises InputError for changes that make no config.
    """
    seconds = measured(args.out / STEPS, {name: changes(name, args.set) for name in CANDIDATES})
    for name in args.only or CANDIDATES:
        steps = steps_in(args.hours, seconds[name])
        print(f"{name}: {steps} steps of {seconds[name]:.2f} s are {args.hours:g} h", flush=True)
        code = run(command(name, args, steps, seconds[name]))
        if code or not (args.out / name / "checkpoints" / str(steps)).is_dir():
            return code or 130
    return 0


def changes(name: str, more: list[str]) -> dict[str, str]:
    """The values by key that a candidate has of its own, with all others, and of the command's, which come last.

    Raises InputError for what is no KEY=VALUE.
    """
    pairs = [change.partition("=") for change in (*CANDIDATES[name].changes, *SHARED, *more)]
    if bad := [key for key, given, _ in pairs if not given]:
        raise InputError(f"--set {bad[0]}: give KEY=VALUE")
    return {key: value for key, _, value in pairs}


def measured(file: Path, values: dict[str, dict[str, str]]) -> dict[str, float]:
    """Seconds of a training step of each candidate with its values, kept in `file`: the median of its best turn, since other programs
    can only make steps slower. What the file has of the same values is not measured again.

    Raises InputError for values that make no config.
    """
    known = json.loads(read_text(file)) if file.exists() else {}
    new = [name for name, of in values.items() if known.get(name, {}).get("values") != of]
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in new}
        for name, folder in folders.items():
            folder.mkdir()
            written(folder, str(ROOT / CANDIDATES[name].preset), [f"{key}={value}" for key, value in values[name].items()], plain=False)
        found = {name: [] for name in new}
        for turn in range(TURNS):
            for name, folder in folders.items():
                found[name].append(in_process("ours preset", TIMED, folder=folder)["seconds"])
                print(f"{name}: turn {turn + 1} of {TURNS}, {statistics.median(found[name][-1]):.3f} s a step", flush=True)
    if new:
        known |= {name: {"values": values[name], "turns": found[name]} for name in new}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(known, indent=1) + "\n")
    return {name: min(map(statistics.median, known[name]["turns"])) for name in values}


def steps_in(hours: float, seconds: float) -> int:
    """The steps of so many seconds that fill the hours."""
    return max(1, round(3600 * hours / seconds))


def command(name: str, args: argparse.Namespace, steps: int, seconds: float) -> list[str]:
    """What trains a candidate, or goes on with it, from the package's folder."""
    own = {"steps": steps, "eval_every": EVALUATED, "save_every": max(1, round(SAVED / seconds))}
    own |= {"data.manifest": args.manifest.absolute(), "data.cache": args.out.absolute() / "cache"}
    own |= {"data.splits": args.splits.absolute()} if args.splits else {}
    # A key once only: a tuple that is given twice is both, one after the other.
    values = own | changes(name, args.set)
    words = [f"--config={CANDIDATES[name].preset}", f"--workdir={args.out.absolute() / name}"]
    return [sys.executable, "-m", "brainseg_jax.main", *words, *(f"--config.{key}={value}" for key, value in values.items())]


def run(words: list[str]) -> int:
    """The exit code of a training. What asks this command to stop is the training's to answer, which saves before it ends."""
    with subprocess.Popen(words, cwd=ROOT) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:  # a terminal sends it to the training too
                    continue
        finally:
            signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
