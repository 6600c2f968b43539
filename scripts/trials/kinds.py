"""All kinds of trials: what each does, how many there are in the long and in the short form, and which process runs them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from trials import checkpoints, commands, disk, files, folders, guards, kills, outputs, pairs, pickles, records
from trials.ledger import Verdict

CALLS, COMMANDS = "calls", "commands"  # functions within one process, or the real commands; each lane is a process


class Kind(NamedTuple):
    """A trial is a function of (folder of undamaged material, random generator, an empty folder); `runs`: it needs the finished run."""

    trial: Callable[[Path, np.random.Generator, Path], Verdict]
    lane: str
    long: int
    short: int
    runs: bool = False


KINDS = {
    "kills of a training": Kind(kills.trial, COMMANDS, 80, 0, True),
    "a full disk": Kind(disk.trial, COMMANDS, 24, 0, True),
    "two at once": Kind(pairs.trial, COMMANDS, 24, 0, True),
    "hostile files, by the commands": Kind(commands.trial, COMMANDS, 60, 0, True),
    "damage to a run, by the commands": Kind(folders.trial, COMMANDS, 60, 0, True),
    "damage to checkpoints": Kind(checkpoints.trial, CALLS, 5000, 40),
    "damage to a run's records": Kind(records.trial, CALLS, 400, 0, True),
    "damage to predictions": Kind(outputs.trial, CALLS, 500, 0, True),
    **{f"damage to {name}": Kind(partial(files.trial, target), CALLS, 4000, 100) for name, target in files.TARGETS.items()},
    "hostile torch files": Kind(pickles.trial, CALLS, 3000, 60),
    **{f"guard against {guard.what}": Kind(partial(guards.trial, guard), COMMANDS, 1, 0) for guard in guards.GUARDS},
}
