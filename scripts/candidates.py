"""Which network, by evidence: candidates trained with equal computing, and what each reaches on scans unlike those it was trained on.

    python scripts/candidates.py train --manifest people.tsv --out runs/candidates

trains the CANDIDATES one after the other, each in OUT/NAME, on the same data, with the same recipe, learning rate and seed. Equal computing
is equal seconds of training steps: each candidate's step is measured once (OUT/steps.json), and HOURS of such steps are its run, whose
learning rate falls to 0 at their end. So neither what else the machine does nor an interruption changes what a run is; the same command
again goes on where it stopped.

    python scripts/candidates.py report --manifest people.tsv --splits split.tsv --anatomies anatomies.tsv --out runs/candidates \\
        --to docs/candidates

writes what the latest checkpoints reach, at any time of the training, as half-precision files as they are handed on: Dice of validation
subjects as they are, through a simulated second scanner and without skull (scripts/shifts.py), and of heads made of those of the anatomies'
label maps that are in split test, which training does not know. The rule of choice is `chosen`, written before there was a result.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchmarks.measure import in_process
from benchmarks.presets import written
from reports import publish, spread
from shifts import Head, check_people, head_of, judged, made, second_scanner, stripped, t1_prior

from brainseg_jax.cli.arguments import Parser
from brainseg_jax.config.recipes import TASKS
from brainseg_jax.config.resolve import of_card
from brainseg_jax.core import progress
from brainseg_jax.core.errors import InputError, exit_code
from brainseg_jax.core.files import SEAL, read_text, write_text
from brainseg_jax.core.pytree import count
from brainseg_jax.data.labels import Table, read_table
from brainseg_jax.data.manifest import Row, apply_splits, read_manifest
from brainseg_jax.data.nifti import read
from brainseg_jax.data.synthesis.priors import Prior
from brainseg_jax.inference.predictor import Predictor, predictor
from brainseg_jax.inference.segmentation import prepare, segment_grid
from brainseg_jax.training import run_records
from brainseg_jax.weights import checkpoint, single_file

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


AS_THEY_ARE, SCANNER, STRIPPED, MADE = "as they are", "second scanner", "without skull", "made heads"
ALTERED = {AS_THEY_ARE: lambda head, rng: head, SCANNER: second_scanner, STRIPPED: stripped}
SHIFTED, DECIDING = (SCANNER, STRIPPED, MADE), "thirtythree"
TIE = 0.005  # of Dice: as near as this networks are alike, and the fastest of them is chosen
DRAWS = 3  # heads of any contrast that are made of a label map; one more looks like a T1
LOOKED_AT = 8  # training people whose T1s say what tissues look like in one
LOOKS = 5  # at one scan, the fastest of which counts


def main() -> int:
    """Trains or reports. Returns the exit code."""
    parser = Parser("python scripts/candidates.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="trains each candidate with equal computing, or goes on with it")
    training.add_argument("--manifest", type=Path, required=True, help="scans with labels, and label maps alone (source synth)")
    training.add_argument("--splits", type=Path, help="a split file; by default the manifest's column split")
    training.add_argument("--out", type=Path, required=True, help="the folder of the runs")
    training.add_argument("--hours", type=float, default=2.0, help="of training steps for each candidate (%(default)g)")
    training.add_argument("--only", nargs="+", choices=CANDIDATES, help="some of the candidates")
    training.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change of all candidates' values")
    training.set_defaults(do=train)
    reporting = commands.add_parser("report", help="writes what they reach")
    reporting.add_argument("--manifest", type=Path, required=True, help="scans with labels")
    reporting.add_argument("--splits", type=Path, help="a split file; by default the manifest's column split")
    reporting.add_argument(
        "--anatomies", type=Path, required=True, help="a manifest of label maps of whole heads; those of split test are used"
    )
    reporting.add_argument("--people", type=int, help="how many of the validation subjects, for a quick look; by default all")
    reporting.add_argument("--out", type=Path, required=True, help="the folder of the runs")
    reporting.add_argument("--to", type=Path, required=True, help="where to write, without suffix")
    reporting.set_defaults(do=lambda args: publish(args.to, lambda: report(args)))
    return exit_code(lambda: (args := parser.parse_args()).do(args))


def train(args: argparse.Namespace) -> int:
    """Measures all candidates' steps, unless that was done, and trains one after the other; the first that stops early stops all.

    Raises InputError for changes that make no config, for hours that are none, and for a manifest or splits that training would refuse.
    """
    if not 0 < args.hours < np.inf:
        raise InputError(f"--hours {args.hours:g}: give a number above 0")
    rows = read_manifest(args.manifest)
    if args.splits:
        apply_splits(rows, args.splits)
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
    known = known_steps(file)
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
    return {name: of_turns(known[name]) for name in values}


def known_steps(file: Path) -> dict[str, Any]:
    """What the file of steps has of each candidate; nothing where there is none. Raises InputError for a damaged one."""
    try:
        known = json.loads(read_text(file)) if file.exists() else {}
        for of in known.values():
            of_turns({"turns": of["turns"]})
    except (ValueError, TypeError, AttributeError, LookupError):
        raise InputError(f"{file}: is damaged; remove it, and steps are measured again") from None
    return known


def of_turns(known: dict[str, Any]) -> float:
    """Seconds of a candidate's step, from what the file of steps has of it."""
    return min(map(statistics.median, known["turns"]))


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


# ---- the report


class Trained(NamedTuple):
    """What there is of a candidate: its network as a file of `bytes`, and `steps` of `length` done, each of `step_seconds`."""

    by: Predictor
    parameters: int
    bytes: int
    learning_rate: float
    steps: int
    length: int
    step_seconds: float

    @property
    def hours(self) -> float:
        """What the whole run takes."""
        return self.length * self.step_seconds / 3600


def report(args: argparse.Namespace) -> str:
    """The tables and the choice; Dice subject by subject is left in TO.json.

    Raises InputError where nothing is trained or nobody is there to judge by, and for runs that cannot be compared (`check_alike`).
    """
    check_people(args.people)
    rows = read_manifest(args.manifest)
    rows = [row for row in (apply_splits(rows, args.splits) if args.splits else rows) if row.labels and not row.labels_only]
    people = [row for row in rows if row.split == "val"][: args.people]
    known = [row for row in rows if row.split == "train"][:LOOKED_AT]
    anatomies = [row for row in read_manifest(args.anatomies) if row.split == "test" and row.labels_only]
    if not (people and known):
        raise InputError(f"{args.manifest}: nobody with labels is in split {'val' if known else 'train'}; give the splits with --splits")
    if not anatomies:
        raise InputError(f"{args.anatomies}: no label maps alone (source synth) are in split test; add some")
    networks = {name: of for name in CANDIDATES if (of := trained(args.out, name))}
    if not networks:
        raise InputError(f"{args.out}: holds no checkpoint of {', '.join(CANDIDATES)}; train them first")
    check_alike(args.out, networks, [*people, *anatomies])
    seconds = predicting(networks, people[0])
    show, done = progress.progress("segmenting altered scans"), 0
    found: dict[str, Any] = {name: defaultdict(lambda: defaultdict(list)) for name in networks}
    for shift, row, head, source in altered(people, anatomies, t1_prior(known)):
        for name, of in networks.items():
            found[name][shift][row.person].append(judged(of.by, head, source, str(row.image)))
            done += 1
            show(done, len(networks) * (len(ALTERED) * len(people) + (DRAWS + 1) * len(anatomies)))
    dice = {name: {shift: averaged(of) for shift, of in shifts.items()} for name, shifts in found.items()}
    environment = run_records.environment()
    facts = {
        name: {key: value for key, value in of._asdict().items() if key != "by"} | {"predicting": seconds[name], "dice": dice[name]}
        for name, of in networks.items()
    }
    write_text(args.to.with_suffix(".json"), json.dumps({"networks": facts, "environment": environment}, indent=1) + "\n")
    return page(networks, seconds, dice, environment)


def check_alike(out: Path, networks: dict[str, Trained], judges: Sequence[Row]) -> None:
    """Raises InputError for networks of other hours or other training subjects than the first one, or trained on who is to judge them."""
    first = next(iter(networks.values()))
    for name, of in networks.items():
        # Steps are whole, so hours are equal to a step.
        if abs(of.hours - first.hours) * 3600 > of.step_seconds + first.step_seconds:
            raise InputError(
                f"{out / name}: is a run of {of.hours:.3g} h and others are of {first.hours:.3g} h; train all with one --hours"
            )
        if of.by.trained_on() != first.by.trained_on():
            raise InputError(f"{out / name}: was trained on other subjects than other candidates; train all with one manifest")
        if seen := [row.subject for row in judges if row.hashed in of.by.trained_on()]:
            raise InputError(f"{out / name}: was trained on {seen[0]}, who is to judge it; give the splits of its training")


def trained(out: Path, name: str) -> Trained | None:
    """The latest checkpoint of a candidate, as the file that would be handed on; None where there is none."""
    whole = [place.parent for place in (out / name / "checkpoints").glob(f"*/{SEAL}") if place.parent.name.isdigit()]
    if not whole:
        return None
    newest = max(whole, key=lambda place: int(place.name))
    params, card = checkpoint.load(newest)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / f"{name}.safetensors"
        single_file.write(file, params, card, np.float16)
        by, size = predictor([file]), file.stat().st_size
    steps = known_steps(out / STEPS)
    if name not in steps:
        raise InputError(f"{out / STEPS}: does not have {name}, which is trained; bring back the file that its training wrote")
    return Trained(by, count(params), size, of_card(card, newest).optim.lr, int(newest.name), card["steps"], of_turns(steps[name]))


def altered(people: Sequence[Row], anatomies: Sequence[Row], prior: Prior) -> Iterator[tuple[str, Row, Head, Table]]:
    """Every scan to judge by: its shift, whose it is, and the scan with its labels. The same at every call, whoever else is asked for."""
    for row in people:
        head, source = head_of(row)
        for shift, alter in ALTERED.items():
            yield shift, row, alter(head, np.random.default_rng(int(row.hashed, 16))), source
    for row in anatomies:
        for draw in range(DRAWS + 1):
            yield MADE, row, made(row, draw, prior if draw == DRAWS else None), read_table(row.scheme[0])


def predicting(networks: dict[str, Trained], row: Row) -> dict[str, float]:
    """Seconds of each network's look at one scan; they take turns, and the fastest of LOOKS counts."""
    ready = prepare(next(iter(networks.values())).by, [read(row.image)], [str(row.image)])
    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in range(LOOKS + 1):
        for name, of in networks.items():
            began = time.perf_counter()
            segment_grid(of.by, ready)
            if turn:  # the first one compiles
                seconds[name].append(time.perf_counter() - began)
    return {name: min(of) for name, of in seconds.items()}


def averaged(found: dict[str, list[dict[str, float]]]) -> dict[str, list[float]]:
    """By task the Dice of each subject, the mean over its scans."""
    return {task: [float(np.mean([scan[task] for scan in scans])) for scans in found.values()] for task in TASKS}


def shifted(dice: dict[str, dict[str, list[float]]]) -> float:
    """What a network is chosen by: Dice of the deciding task, the mean of the shifts' means."""
    return float(np.mean([np.mean(dice[shift][DECIDING]) for shift in SHIFTED]))


def chosen(values: dict[str, float], seconds: dict[str, float]) -> str:
    """The rule: the network of the highest value; of those at most TIE below it the one that predicts fastest."""
    best = max(values.values())
    return min((name for name, value in values.items() if value >= best - TIE - 1e-12), key=lambda name: seconds[name])


def page(networks: dict[str, Trained], seconds: dict[str, float], dice: dict[str, Any], environment: dict[str, Any]) -> str:
    """The text. `dice` is by network, shift and task, a number for each subject."""
    values = {name: shifted(of) for name, of in dice.items()}
    unfinished = [name for name in CANDIDATES if name not in networks or networks[name].steps < networks[name].length]
    shifts, first = [AS_THEY_ARE, *SHIFTED], next(iter(dice))
    subjects, maps = (len(dice[first][shift][DECIDING]) for shift in (AS_THEY_ARE, MADE))
    rates = ", ".join(sorted({f"{of.learning_rate:g}" for of in networks.values()}))
    hours, lines = networks[first].hours, ["# Which network\n"]
    if unfinished:
        lines.append(f"**A look at runs under way, no result:** still to be trained are {', '.join(unfinished)}.\n")
    lines += [
        f"Written by `scripts/candidates.py`. Each network is trained for {hours:.3g} hours of its own training steps, whose "
        f"seconds were measured by turns on the same cores (of {TURNS} turns the best one's median); on the same scans, real and made, by "
        f"the recipe `thirtythree,any` for the label table `intracranial`, with one seed and the recipe's own learning rate ({rates}) for "
        "all. Its last checkpoint is judged, as a half-precision file.\n",
        f"Dice is the mean over the structures of a task (of `thirtythree` those that the labels have), with its spread over {subjects} "
        "validation subjects, on whom no network was trained, though some of them were watched meanwhile. Made heads are "
        f"{DRAWS + 1} scans of each of {maps} label maps that no training knew, one of them like a T1. The second scanner has another "
        "contrast curve, a coil that shades by 3 to 1 across the brain, slices of 4 to 6 mm, and noise.\n",
        f"| {DECIDING} | parameters | step, s | steps | hours | {' | '.join(shifts)} | mean of the shifts | predicting, s | file, MB |",
        "|---" * (len(shifts) + 8) + "|",
    ]
    for name, of in networks.items():
        done = f"{of.steps:,}" if of.steps == of.length else f"{of.steps:,} of {of.length:,}"
        cells = [CANDIDATES[name].called, f"{of.parameters:,}", f"{of.step_seconds:.2f}", done, f"{of.steps * of.step_seconds / 3600:.2f}"]
        cells += [spread(dice[name][shift][DECIDING]) for shift in shifts]
        lines.append(f"| {' | '.join(cells)} | {values[name]:.3f} | {seconds[name]:.2f} | {of.bytes / 1e6:.1f} |")
    for task in (task for task in TASKS if task != DECIDING):
        lines += ["", f"| {task} | {' | '.join(shifts)} |", "|---" * (len(shifts) + 1) + "|"]
        for name in networks:
            lines.append(f"| {CANDIDATES[name].called} | {' | '.join(spread(dice[name][shift][task]) for shift in shifts)} |")
    choice = CANDIDATES[chosen(values, seconds)].called
    machine, packages, commit = (environment[key] for key in ("machine", "packages", "commit"))
    lines += [
        "",
        f"The rule, written before there was a result: the highest mean of the three shifts' Dice of `{DECIDING}`, and of networks within "
        f"{TIE} of it the one that predicts fastest. {'It would choose so far' if unfinished else 'It chooses'}: **{choice}**.\n",
        f"Predicting is the network's part of it, for one scan at 2 mm, the fastest of {LOOKS}. {machine['processor']}, "
        f"{machine['cores']} cores; JAX {packages['jax']}; commit {commit[:12]}.\n",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
