"""Communication between the processes of a run by the coordination service, without cost for a single process."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

from brainseg_jax.core.errors import InputError
from brainseg_jax.parallel import service

T = TypeVar("T")

WAIT = 7 * 24 * 3600 * 1000  # milliseconds: a process may work for days; if it dies, waiting ends by the missing heartbeat

_numbers = count()


def all_gather(word: str) -> list[str]:
    """The words of all processes, in their order. All have to call it, in the same order of calls."""
    client = service.global_state.client
    if client is None:
        return [word]
    number = next(_numbers)
    client.key_value_set(f"brainseg_jax/{number}/{service.global_state.process_id}", word)
    return [client.blocking_key_value_get(f"brainseg_jax/{number}/{i}", WAIT) for i in range(service.global_state.num_processes)]


def broadcast_from_first(find: Callable[[], T]) -> T:
    """The result of `find` in process 0, for all processes: for decisions and for reading a disk that changes. It has to be valid JSON."""
    if service.global_state.client is None:
        return find()
    return json.loads(all_gather("null" if service.global_state.process_id else json.dumps(find()))[0])


def any_process(here: bool) -> bool:
    """Whether `here` is true in any process."""
    return any(json.loads(word) for word in all_gather(json.dumps(here)))


@contextmanager
def barrier() -> Iterator[None]:
    """A block at whose end all processes wait for each other; an InputError of one is raised in all."""
    fault = None
    try:
        yield
    except InputError as error:
        fault = error
    for i, message in enumerate(all_gather(str(fault or ""))):
        if message:
            raise fault if i == service.global_state.process_id else InputError(f"process {i}: {message}")


def assert_same_on_all(told: dict[str, Any]) -> None:
    """Raises InputError, naming key and values, unless all processes have the same values."""
    first, *others = map(json.loads, all_gather(json.dumps(told)))
    for i, other in enumerate(others, 1):
        if different := [key for key in first.keys() | other.keys() if first.get(key) != other.get(key)]:
            key = min(different)
            raise InputError(
                f"process {i} has {key} {other.get(key)} where process 0 has {first.get(key)}; start all with the same command, software "
                "and files"
            )


def run_once_per_host(make: Callable[[], T]) -> T:
    """The result of `make`, which writes files: run by process 0, then by one process of each other host, then by all others, which find
    the files."""
    hosts, process = all_gather(socket.gethostname()), service.global_state.process_id
    own_turn = 0 if process == 0 else 1 if hosts.index(hosts[process]) == process else 2
    for turn in range(3):
        with barrier():
            if turn == own_turn:
                result = make()
    return result
