"""Where a training step's time goes on a CPU: the wall clock of one step, shared out among what was running.

At every moment the time belongs in equal parts to what the threads are at; what XLA's own pools do without a name belongs to who called
them. Names are looked up in the compiled program.
"""

import argparse
import heapq
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import Result, in_process, jax_matmul_peak
from benchmarks.presets import presets, step_of, written

from brainseg_jax.planning.hlo import Computations, Instruction, parse

KINDS = ("products", "convolutions", "moving", "elements", "nothing")
MOVING = {
    "parameter", "constant", "bitcast", "copy", "transpose", "reshape", "slice", "dynamic-slice", "dynamic-update-slice", "pad",
    "concatenate", "broadcast", "gather", "reverse", "iota", "tuple", "get-tuple-element", "convert",
}  # fmt: skip


class Event(NamedTuple):
    """Something that a thread is at, in seconds; what is within it happens instead of it."""

    start: float
    end: float
    name: str


def profile(args: argparse.Namespace) -> tuple[str, Any]:
    """Shares of the step's time by kind of work, and the dearest places, for each preset."""
    lines = [
        "| preset | step, s | products | convolutions | moving | element by element, sums | nothing named | GFLOP/s in the first two |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes, results = [], {}
    for preset, changes in presets(args).items():
        with tempfile.TemporaryDirectory() as folder:
            written(Path(folder), preset, changes, plain=True)
            found = in_process("profile preset", 1, folder=Path(folder))
        kinds, step = found["kinds"], found["step"]
        rate = found["flop"] / (kinds["products"] + kinds["convolutions"])
        shares = " | ".join(f"{100 * kinds[kind] / step:.0f} %" for kind in KINDS)
        lines.append(f"| {preset} | {step:.2f} | {shares} | {rate / 1e9:.0f}, {100 * rate / found['matmul']:.0f} % of the best product |")
        notes += ["", f"{preset}, the dearest places:", ""]
        notes += [f"- {100 * seconds / step:.1f} %: {kind}, `{place}`" for (kind, place), seconds in found["places"]]
        results[preset] = found
    foot = "FLOPs are those of the network by definition, so Winograd's convolutions count more than they compute. One step, traced."
    return "\n".join([*lines, "", foot, *notes]), results


def worker(steps: int, folder: Path) -> Result:
    """Seconds of one step by kind of work and by place."""
    made = step_of(folder)
    import jax

    from brainseg_jax.planning.plan import analytic

    state, _ = jax.block_until_ready(made.compiled(made.state, made.batch))
    with jax.profiler.trace(str(folder / "trace")):
        jax.block_until_ready(made.compiled(state, made.batch))
    computations, _ = parse(made.compiled.as_text())
    where = {name: (kind(computations, line), place(line)) for body in computations.values() for name, line in body.items()}
    threads = list(threads_of(next((folder / "trace").rglob("*.xplane.pb")), set(where)))
    shared = shared_out(threads)
    kinds, places = Counter(dict.fromkeys(KINDS, 0.0)), Counter()
    for name, seconds in shared.items():
        kinds[where[name][0]] += seconds
        places[where[name]] += seconds
    span = max(e.end for t in threads for e in t) - min(e.start for t in threads for e in t)
    kinds["nothing"] = span - sum(shared.values())
    return {
        "step": span,
        "kinds": kinds,
        "places": places.most_common(12),
        "flop": analytic(made.config)["step"],
        "matmul": jax_matmul_peak(),
    }


def threads_of(file: Path, names: set[str]) -> Iterator[list[Event]]:
    """Of each thread what it did with one of these names."""
    import jax

    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            events = [Event(e.start_ns / 1e9, (e.start_ns + e.duration_ns) / 1e9, e.name) for e in line.events if e.name in names]
            if events:
                yield events


def shared_out(threads: Iterable[list[Event]]) -> Counter:
    """Seconds of each name: at every moment equal parts for what the threads are at, which is the innermost event of each."""
    pieces = sorted(piece for events in threads for piece in innermost(events))
    total: Counter = Counter()
    ends: list[tuple[float, str]] = []  # of what runs, the next to end first
    now, at = 0.0, 0
    while at < len(pieces) or ends:
        until = min(pieces[at].start if at < len(pieces) else float("inf"), ends[0][0] if ends else float("inf"))
        for _, name in ends:
            total[name] += (until - now) / len(ends)
        now = until
        while ends and ends[0][0] <= now:
            heapq.heappop(ends)
        while at < len(pieces) and pieces[at].start <= now:
            heapq.heappush(ends, (pieces[at].end, pieces[at].name))
            at += 1
    return total


def innermost(events: list[Event]) -> Iterator[Event]:
    """A thread's time cut where an event begins or ends, each piece with the innermost event."""
    around: list[Event] = []
    now = 0.0

    def leave(before: float) -> Iterator[Event]:
        nonlocal now
        while around and around[-1].end <= before:
            done = around.pop()
            if done.end > now:
                yield Event(now, done.end, done.name)
                now = done.end

    for event in sorted(events, key=lambda e: (e.start, -e.end)):
        yield from leave(event.start)
        if around and event.start > now:
            yield Event(now, event.start, around[-1].name)
        around.append(event)
        now = event.start
    yield from leave(float("inf"))


def kind(computations: Computations, line: Instruction) -> str:
    """What sort of work an instruction is."""
    called = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", line.rest) if line.op in ("fusion", "call") else None
    inside = {i.op for i in computations[called[1]].values()} if called else {line.op}
    if "convolution" in inside:
        return "convolutions"
    if "dot" in inside:
        return "products"
    return "moving" if inside <= MOVING else "elements"


def place(line: Instruction) -> str:
    """The network's part that an instruction is of, as far as its name says."""
    named = re.search(r'op_name="([^"]*)"', line.rest)
    words = (
        re.sub(r"(?:jit|jvp|transpose|vmap|checkpoint|closed_call|remat\d*|while|body|cond|branch_\d+_fun)\b", "", named[1])
        if named
        else ""
    )
    parts = [w for w in re.split(r"[/()]+", words) if w and w != "train_step"]
    return "/".join(parts[-4:]) or line.op


WORKERS = {"profile preset": worker}
