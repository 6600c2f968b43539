"""Start of the processes of a run, by SLURM or by flags, and their connection."""

import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import jax

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.runtime import UNTRIED
from brainseg_jax.parallel import service
from brainseg_jax.parallel.sync import all_gather

NOTICE = 10  # seconds after which a process prints that it waits for others
CONTACT = 300  # seconds in which all processes have to connect
SILENCE = 60  # seconds without a heartbeat after which a process counts as dead
LEAVING = 10  # seconds a failing process waits for the others to fail too


class Start(NamedTuple):
    """The address of process 0 (host:port), the number of processes, this one's index, and its GPUs (None: all that it sees)."""

    coordinator: str
    processes: int
    process: int
    devices: tuple[int, ...] | None = None


def start_from(coordinator: str, processes: int | None, process: int | None, environ: Mapping[str, str]) -> Start | None:
    """The start of this process by the flags or, without them, by SLURM; None for a single process.

    Only `srun` starts several: a batch script that calls Python itself is one process, whatever --ntasks is. Raises InputError for flags
    that cannot be combined.
    """
    given = {"--coordinator": coordinator or None, "--processes": processes, "--process": process}
    if processes == 1 and process in (None, 0):
        return None
    if any(value is not None for value in given.values()):
        if missing := [flag for flag, value in given.items() if value is None]:
            raise InputError(f"{missing[0]} is missing; give --coordinator=HOST:PORT --processes=N --process=I, or none of them")
        if not re.fullmatch(r".+:\d{1,5}", coordinator) or not 0 < int(coordinator.rpartition(":")[2]) < 65536:
            raise InputError(f"--coordinator={coordinator}: give the host of process 0 and a free port there, e.g. node1:61234")
        if processes < 1:
            raise InputError(f"--processes={processes}: give how many processes there are in all, 1 or more")
        if not 0 <= process < processes:
            raise InputError(f"--process={process} of --processes={processes}: processes are counted from 0 to {processes - 1}")
        return Start(coordinator, processes, process)
    if "SLURM_STEP_NUM_TASKS" not in environ or slurm_number(environ, "SLURM_STEP_NUM_TASKS") == 1:
        return None
    # A port by job and step, since two may share a node, above the range of ephemeral ports.
    port = 61000 + (31 * slurm_number(environ, "SLURM_JOB_ID") + slurm_number(environ, "SLURM_STEP_ID")) % 4500
    host = first_host(environ.get("SLURM_STEP_NODELIST", ""))
    if not host:
        raise unexpected_variable(environ, "SLURM_STEP_NODELIST")
    return Start(f"{host}:{port}", slurm_number(environ, "SLURM_STEP_NUM_TASKS"), slurm_number(environ, "SLURM_PROCID"), own_gpus(environ))


def slurm_number(environ: Mapping[str, str], name: str) -> int:
    """A number from a variable of SLURM. Raises InputError if it is not a number."""
    if not environ.get(name, "").isdecimal():
        raise unexpected_variable(environ, name)
    return int(environ[name])


def unexpected_variable(environ: Mapping[str, str], name: str) -> InputError:
    """The error for a variable that is not as `srun` sets it."""
    return InputError(
        f"{name} is {environ.get(name, 'not set')!r}, not as srun sets it for one of several processes; start by srun, or give "
        "--processes=1 if this process is to be alone"
    )


def first_host(nodes: str) -> str:
    """The first host of SLURM's host list, e.g. node01 of node[01-04,07],login."""
    return "".join(re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^\[,]*)", nodes).groups(""))


def own_gpus(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """The indices of this process's GPUs among those it sees; None: all of them.

    The only process of a node takes all. Several divide them, unless SLURM shows each process its own (--gpus-per-task). Raises InputError
    if they do not divide.
    """
    per_node = re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))  # e.g. 4(x2),1
    node_tasks = [int(n) for n, nodes in per_node for _ in range(int(nodes or 1))]
    node = slurm_number(environ, "SLURM_NODEID")
    if node >= len(node_tasks):
        raise unexpected_variable(environ, "SLURM_STEP_TASKS_PER_NODE")
    tasks = node_tasks[node]
    seen = len([gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu])
    if tasks == 1 or seen < (slurm_number(environ, "SLURM_GPUS_ON_NODE") if environ.get("SLURM_GPUS_ON_NODE") else 1):
        return None
    if seen % tasks:
        raise InputError(f"{seen} GPUs do not divide over {tasks} processes of a node; use e.g. --ntasks-per-node={seen}, or 1")
    share, local = seen // tasks, slurm_number(environ, "SLURM_LOCALID")
    return tuple(range(local * share, (local + 1) * share)) or None


@contextmanager
def joined(start: Start | None) -> Iterator[None]:
    """A block, around all use of JAX, in which this process is connected to the others. Raises InputError if they do not connect.

    If all processes fail, only process 0 prints the error. If one fails while the others wait for it in a step, it exits at once without
    disconnecting, and JAX ends the others.
    """
    if start is None:
        yield
        return
    if service.global_state is service.Alone:
        raise InputError(
            f"{start.processes} processes talk by {service.SERVICE.replace(':', '.')}, which JAX {jax.__version__} has not as we know it; "
            f'pip install "jax<{UNTRIED}", or start one process, by --processes=1'
        )
    # JAX handles signals only while there is a step to stop at: see `stop_requests`.
    jax.config.update("jax_enable_preemption_service", False)
    who = f"process {start.process} of {start.processes}"
    notice = f"{who}: waiting at {start.coordinator} for all to be there, {CONTACT} s at most"
    waiting = threading.Timer(NOTICE, lambda: print(notice, file=sys.stderr, flush=True))
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            start.coordinator,
            start.processes,
            start.process,
            start.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=CONTACT,
            heartbeat_timeout_seconds=SILENCE,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{who}: no contact by {start.coordinator} ({reason}); start all processes, each with its own number, and check that this host "
            "is process 0's and the port free"
        ) from error
    finally:
        waiting.cancel()
    try:
        yield
    except BaseException as error:
        try:
            service.global_state.client.wait_at_barrier("leaving", LEAVING * 1000)
        except RuntimeError:
            if isinstance(error, InputError):
                print(f"error: process {start.process}: {error}", file=sys.stderr)
            else:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2 if isinstance(error, InputError) else 1)
        jax.distributed.shutdown()
        if isinstance(error, InputError | KeyboardInterrupt) and start.process:
            raise SystemExit(2 if isinstance(error, InputError) else 130) from None  # process 0 prints it
        raise
    jax.distributed.shutdown()


def check_devices(wanted: int) -> None:
    """Raises InputError unless all processes together have `wanted` devices; 0: any number."""
    if wanted and (devices := jax.device_count()) != wanted:
        hosts = ", ".join(all_gather(f"{jax.local_device_count()} on {socket.gethostname()}"))
        raise InputError(f"--devices is {wanted}, and there are {devices} ({hosts}); start as many as you mean, or leave --devices out")
