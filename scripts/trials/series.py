"""A series of trials: two processes, one for functions and one for commands, each always at the kind of which the smallest part is done."""

import argparse
import contextlib
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from trials import ledger, material
from trials.kinds import CALLS, COMMANDS, KINDS, Kind
from trials.ledger import Trial, Verdict

from brainseg_jax.core.errors import InputError
from brainseg_jax.training import run_records

FILE = "trials.jsonl"
LANES = (CALLS, COMMANDS)


def series(args: argparse.Namespace) -> int:
    """Starts the two processes, again where one died of a trial, and prints the table. Returns 1 if any trial ended badly."""
    began, kinds = time.monotonic(), chosen(args)
    args.out.mkdir(parents=True, exist_ok=True)
    environment = run_records.environment()
    ledger.append(args.out / FILE, {"command": command(), "seed": args.seed, "environment": environment})
    material.make(args.out / "material", any(kind.runs for kind in kinds.values()), environment["commit"])
    running = {name: start(args, name, began) for name in LANES if any(kind.lane == name for kind in kinds.values())}
    try:
        while running:
            time.sleep(0.2)
            for name, code in [(name, code) for name, process in running.items() if (code := process.poll()) is not None]:
                del running[name]
                if code < 0:
                    if not (at := args.out / f"{name}.now").exists():
                        raise InputError(f"{args.out}: the trials of {name} died of signal {-code} before the first; run again")
                    now = json.loads(at.read_text())
                    end = {"outcome": ledger.TRACEBACK, "detail": f"the whole process died of signal {-code}", "seconds": 0.0}
                    ledger.append(args.out / FILE, now | end)
                    running[name] = start(args, name, began)
                elif code:
                    raise InputError(f"{args.out}: the trials of {name} failed by themselves, as is said above; mend them, and run again")
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            process.wait()
    return told(args)


def start(args: argparse.Namespace, name: str, began: float) -> subprocess.Popen:
    """The process of a lane, for the rest of the time."""
    (args.out / f"{name}.now").unlink(missing_ok=True)
    left = args.minutes - (time.monotonic() - began) / 60
    words = [sys.executable, sys.argv[0], "--lane", name, "--minutes", str(left), "--seed", str(args.seed), "--out", str(args.out)]
    return subprocess.Popen([*words, "--only", args.only] + ["--short"] * args.short, start_new_session=True)


def lane(args: argparse.Namespace) -> int:
    """Does the trials of one lane until all are done or the time is over."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells at length of what is damaged here on purpose
    warnings.simplefilter("error", RuntimeWarning)  # which a command would print beside its line
    kinds = {name: kind for name, kind in chosen(args).items() if kind.lane == args.lane}
    until, folder = time.monotonic() + 60 * args.minutes, args.out / f"{args.lane}-trial"
    with contextlib.suppress(KeyboardInterrupt):
        for name, n in todo(kinds, args):
            if time.monotonic() > until:
                break
            (args.out / f"{args.lane}.now").write_text(json.dumps({"kind": name, "seed": args.seed, "n": n}))
            shutil.rmtree(folder, ignore_errors=True)
            ledger.append(args.out / FILE, once(args, name, n, folder)._asdict())
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def todo(kinds: dict[str, Kind], args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Kind and number of every trial that is not done, evenly spread over the kinds."""
    wanted = {name: kind.short if args.short else kind.long for name, kind in kinds.items()}
    done = {(trial.kind, trial.n) for trial in ledger.trials(args.out / FILE, args.seed)}
    lacking = [((n + 1) / count, name, n) for name, count in wanted.items() for n in range(count) if (name, n) not in done]
    yield from ((name, n) for _, name, n in sorted(lacking))


def repeat(args: argparse.Namespace) -> int:
    """One trial again."""
    if args.only not in KINDS:
        raise InputError(f"--trial needs --only and the whole name of a kind; {args.only!r} is none")
    folder = args.out / "again"
    shutil.rmtree(folder, ignore_errors=True)
    material.make(args.out / "material", KINDS[args.only].runs, run_records.environment()["commit"])
    print(once(args, args.only, args.trial, folder))
    return 0


def once(args: argparse.Namespace, name: str, n: int, folder: Path) -> Trial:
    """Trial number n of a kind, in a folder of its own."""
    folder.mkdir(parents=True)
    rng, began = np.random.default_rng([args.seed, zlib.crc32(name.encode()), n]), time.perf_counter()
    try:
        verdict = KINDS[name].trial(args.out / "material", rng, folder)
    except Exception as error:  # of a trial, which then has shown nothing; the others go on
        verdict = Verdict(ledger.TRACEBACK, f"the trial itself failed, {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return Trial(name, args.seed, n, *verdict, round(time.perf_counter() - began, 2))


def chosen(args: argparse.Namespace) -> dict[str, Kind]:
    """The kinds that --only means, all without it."""
    found = {name: kind for name, kind in KINDS.items() if name.startswith(args.only)}
    if not found:
        raise InputError(f"--only {args.only!r}: no kind begins so; there are {', '.join(KINDS)}")
    return {name: kind for name, kind in found.items() if kind.short or not args.short}


def command() -> str:
    """The command as a reader would type it, without the place of the results."""
    words: list[str] = []
    given: Any = iter(sys.argv[1:])
    for word in given:
        if word == "--out":
            next(given, None)
        elif not word.startswith("--out="):
            words.append(f'"{word}"' if " " in word else word)
    return " ".join(["python scripts/endurance.py", *words])


def told(args: argparse.Namespace) -> int:
    """Prints the table, and how to see what ended badly again."""
    kinds = chosen(args)
    done = [trial for trial in ledger.trials(args.out / FILE, args.seed) if trial.kind in kinds]
    print(ledger.table(done, kinds))
    bad = [trial for trial in done if trial.outcome in ledger.BAD]
    for trial in bad[:50]:
        print(f"{trial.outcome}: --only {trial.kind!r} --trial {trial.n}: {trial.detail}")
    if len(bad) > 50:
        print(f"… and {len(bad) - 50} more in {args.out / FILE}")
    return 1 if bad else 0
