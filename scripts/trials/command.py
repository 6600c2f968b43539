"""The real commands as processes of their own, and what they leave behind: words, exit codes, children, shared memory, files."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trials.ledger import BAD, HELD, NOTICED, ORPHAN, TRACEBACK, UNBOUNDED, Verdict

ROOT = Path(__file__).parents[2]
MARK = "ENDURANCE_TRIAL"  # in the environment of what a trial starts, and so of its children
SECONDS, BYTES = 240, 6 * 2**30  # a command may take
GRACE = 15  # seconds after which nothing of an ended command may be left
# Lines on stderr that are XLA's own, not ours: its log begins with a level and a date.
LOG = re.compile(r"[IWE]\d{4} |WARNING: All log messages")


class Process(NamedTuple):
    """A command that runs; what it prints goes to files, OUT.out and OUT.err, which do not fill up as pipes do."""

    pid: int
    out: Path

    def runs(self) -> bool:
        """Whether it has not ended; it is left to `end` to find out how."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


class Ended(NamedTuple):
    """A command that has ended: exit code (None: it had to be killed, for time), its words, and the most memory it held."""

    code: int | None
    out: str
    err: list[str]
    memory: int


def begin(words: list[str], folder: Path, **environment: str) -> Process:
    """Starts `python -m WORDS…` for the trial whose folder that is."""
    (folder / "tmp").mkdir(exist_ok=True)
    out = folder / f"{len(list(folder.glob('*.out')))}.out"
    own = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    own |= {"JAX_PLATFORMS": "cpu", "TMPDIR": str(folder / "tmp"), MARK: str(folder), "PYTHONPATH": str(ROOT)} | environment
    with out.open("w") as stdout, out.with_suffix(".err").open("w") as stderr:
        command = [sys.executable, "-m", *map(str, words)]
        popen = subprocess.Popen(command, cwd=ROOT, env=own, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True)
    popen.returncode = 0  # it is waited for here, with what it used
    return Process(popen.pid, out)


def end(process: Process, seconds: float = SECONDS) -> Ended:
    """Waits for a command, and ends it if it takes longer."""
    until = time.monotonic() + seconds
    while process.runs() and time.monotonic() < until:
        time.sleep(0.02)
    if late := process.runs():
        os.kill(process.pid, signal.SIGKILL)
    _, status, used = os.wait4(process.pid, 0)
    lines = process.out.with_suffix(".err").read_text(errors="replace").splitlines()
    complaints = [line for line in lines if line.strip() and not LOG.match(line)]
    code = None if late else os.waitstatus_to_exitcode(status)
    return Ended(code, process.out.read_text(errors="replace"), complaints, 1024 * used.ru_maxrss)


def run(words: list[str], folder: Path, seconds: float = SECONDS, **environment: str) -> Ended:
    """A command from beginning to end."""
    return end(begin(words, folder, **environment), seconds)


def fault(ended: Ended, codes: dict[int, str]) -> Verdict | None:
    """What is wrong with how a command ended, None if nothing is: `codes` are those it may end with, and what it says then, a pattern."""
    if ended.code is None:
        return Verdict(UNBOUNDED, f"did not end: {last(ended)}")
    if ended.memory > BYTES:
        return Verdict(UNBOUNDED, f"took {ended.memory >> 20} MiB")
    if any("Traceback" in line or "please report it" in line for line in ended.err) or "Traceback" in ended.out:
        return Verdict(TRACEBACK, f"exit code {ended.code}, {len(ended.err)} lines: {last(ended)}")
    if ended.code not in codes:
        return Verdict(TRACEBACK, f"exit code {ended.code}: {last(ended)}")
    if ended.code in (2, 130) and len(ended.err) != 1:
        return Verdict(TRACEBACK, f"exit code {ended.code} with {len(ended.err)} lines: {last(ended)}")
    if not re.search(codes[ended.code], "\n".join([ended.out, *ended.err])):
        return Verdict(TRACEBACK, f"exit code {ended.code}, does not say {codes[ended.code]!r}: {last(ended)}")
    return None


def last(ended: Ended) -> str:
    """The end of what a command said."""
    return " | ".join([*ended.err[-3:], *ended.out.splitlines()[-1:]])[:400]


def outcome(ended: Ended) -> Verdict:
    """Of a command without fault: whether it did all, or said what is wrong."""
    return Verdict(HELD, "") if ended.code == 0 else Verdict(NOTICED, last(ended))


def left(folder: Path, shared: set[str] | None = None, places: tuple[Path, ...] = ()) -> Verdict | None:
    """What a trial's ended commands left: processes, which are ended then, shared memory, and unfinished files; None if nothing.

    `shared` is what /dev/shm held before. What others on this machine hold there is in use. None: it is not looked at, since what a killed
    process left there is for the next one to remove.
    """
    until = time.monotonic() + GRACE
    while (alive := list(processes(folder))) and time.monotonic() < until:
        time.sleep(0.1)
    words = {pid: (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80] for pid in alive}
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    segments = [] if shared is None else sorted(segments_now() - shared - in_use())
    for name in segments:
        (Path("/dev/shm") / name).unlink(missing_ok=True)
    parts = [str(p) for place in places for p in place.rglob("*") if p.name.endswith(".part") or "orbax-checkpoint-tmp" in p.name]
    parts += [str(p) for p in (folder / "tmp").rglob("*") if p.is_file() and p.stat().st_size]
    if words or segments or parts:
        return Verdict(ORPHAN, f"processes {list(words.values())}, shared memory {segments[:5]}, files {parts[:5]}")
    return None


def settled(found: Verdict, folder: Path, shared: set[str], places: tuple[Path, ...] = ()) -> Verdict:
    """A trial's verdict, or that something was left, where nothing else is wrong."""
    rest = left(folder, shared, places)
    return found if rest is None or found.outcome in BAD else rest


def processes(folder: Path) -> Iterator[int]:
    """What a trial started and still runs."""
    mark = f"{MARK}={folder}".encode()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (place / "environ").read_bytes().split(b"\0") and b"State:\tZ" not in (place / "status").read_bytes():
                yield int(place.name)
        except OSError:
            continue


def segments_now() -> set[str]:
    """What lies in shared memory."""
    return {path.name for path in Path("/dev/shm").glob("*")} if Path("/dev/shm").is_dir() else set()


def in_use() -> set[str]:
    """What of it a living process holds."""
    held = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            held |= set(re.findall(r"/dev/shm/(\S+)", maps.read_text(errors="replace")))
        except OSError:
            continue
    return held
