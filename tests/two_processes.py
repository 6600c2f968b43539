"""What each of two processes does for test_distributed.py, as srun would start it: python two_processes.py FOLDER, see `main`."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax

from brainseg_jax.config.resolve import from_resolved, with_sources
from brainseg_jax.core.errors import InputError
from brainseg_jax.data.loader import ProcessShare
from brainseg_jax.parallel.launch import check_devices, joined, start_from
from brainseg_jax.parallel.sharding import check_batch, make_mesh
from brainseg_jax.parallel.sync import all_gather, assert_same_on_all, barrier, broadcast_from_first, run_once_per_host
from brainseg_jax.training import loop
from brainseg_jax.training.loop import train
from brainseg_jax.training.run_lock import exclusive_run_dir


def refusal(what):
    """The text of the InputError that it raises."""
    try:
        what()
    except InputError as error:
        return str(error)
    return ""


def words(folder, me):
    """What helpers for telling one another give."""

    def faulty():
        with barrier():
            if me == 1:
                raise InputError("no scan here")

    def take_turn():
        with (folder / "turns").open("a") as file:
            file.write(str(me))
        return (folder / "turns").read_text()

    def hold():
        with exclusive_run_dir(folder / f"run of {me}", ProcessShare(me, 2)):
            pass

    return {
        "gathered": all_gather(f"word of {me}"),
        "first": broadcast_from_first(lambda: {"by": me}),
        "fault": refusal(faulty),
        "turns": run_once_per_host(take_turn),
        "agreed": refusal(lambda: assert_same_on_all({"a": 1, "b": [2]})),
        "disagreed": refusal(lambda: assert_same_on_all({"a": 1, "data.batch": 2 + me})),
        "devices": refusal(lambda: check_devices(5)),
        "mesh": refusal(lambda: make_mesh(2, 1, jax.devices())),
        "batch": refusal(lambda: check_batch(4, 1, make_mesh(4, 1, jax.devices()), 4)),
        "folder": refusal(hold),
    }


def main(folder: Path) -> None:
    """Reads configs by name from FOLDER/configs.json, and writes what it sees to FOLDER/told0.json or told1.json.

    Goes on with FOLDER/run, in which process 1 meets Ctrl-C; runs FOLDER/tuned to its end; in FOLDER/alone process 1 fails.
    """
    configs = {name: from_resolved(config) for name, config in json.loads((folder / "configs.json").read_text()).items()}
    go = lambda name, config: train(config, with_sources(config, set(), "test.py"), folder / name)  # noqa: E731
    with joined(start_from("", None, None, os.environ)):
        me, written = jax.process_index(), []
        told = {"processes": jax.process_count(), "devices": jax.device_count(), "here": jax.local_device_count()}
        told |= {"words": words(folder, me), "manifest": refusal(lambda: go("refused", configs[f"other manifest {me}"]))}

        def watch(event, args):
            if event == "open" and isinstance(args[0], str | Path) and args[2] & (os.O_WRONLY | os.O_RDWR):
                path = Path(args[0]).absolute()
                written.extend([str(path.relative_to(folder))] if path.is_relative_to(folder) else [])

        sys.addaudithook(watch)
        real, seen = loop.means, []

        def means(window):
            # After its second step process 1 alone meets Ctrl-C; slowly, since JAX looks for signals once a second.
            seen.append(None)
            if len(seen) == 2 and me == 1:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.25)
            return real(window)

        loop.means = means
        try:
            go("run", configs["run"])
        except KeyboardInterrupt as interrupt:
            told["interrupted"] = str(interrupt)
        loop.means = real
        go("tuned", configs["tuned"])
        told["written"] = list(written)
        (folder / f"told{me}.json").write_text(json.dumps(told))
        go("alone", configs[f"alone {me}"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
