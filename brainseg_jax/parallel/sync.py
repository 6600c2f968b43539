"""What the processes of a run tell one another, by the coordination service; of a single process all of it costs nothing."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

from brainseg_jax.core.errors import InputError
from brainseg_jax.parallel import service

T = TypeVar("T")

WAIT = 7 * 24 * 3600 * 1000  # milliseconds: a process may work for days; if it dies, waiting ends once its silence is noticed

_numbers = count()


def all_gather(word: str) -> list[str]:
    """What every process says here, in their order, in all of them. All have to come by, in the same order of calls."""
    client = service.global_state.client
    if client is None:
        return [word]
    number = next(_numbers)
    client.key_value_set(f"brainseg_jax/{number}/{service.global_state.process_id}", word)
    return [client.blocking_key_value_get(f"brainseg_jax/{number}/{i}", WAIT) for i in range(service.global_state.num_processes)]


def broadcast_from_first(find: Callable[[], T]) -> T:
    """What process 0 finds, in all: for what is read from a disk that changes, and for decisions. JSON has to be able to hold it."""
    if service.global_state.client is None:
        return find()
    return json.loads(all_gather("null" if service.global_state.process_id else json.dumps(find()))[0])


def any_process(here: bool) -> bool:
    """Whether it is so in any process."""
    return any(json.loads(word) for word in all_gather(json.dumps(here)))


@contextmanager
def barrier() -> Iterator[None]:
    """All go on once all are here; an InputError of one process is raised in all."""
    fault = None
    try:
        yield
    except InputError as error:
        fault = error
    for i, said in enumerate(all_gather(str(fault or ""))):
        if said:
            raise fault if i == service.global_state.process_id else InputError(f"process {i}: {said}")


def assert_same_on_all(told: dict[str, Any]) -> None:
    """Raises InputError, naming key and values, unless all processes tell the same."""
    first, *others = map(json.loads, all_gather(json.dumps(told)))
    for i, other in enumerate(others, 1):
        if different := [key for key in first.keys() | other.keys() if first.get(key) != other.get(key)]:
            key = min(different)
            raise InputError(
                f"process {i} has {key} {other.get(key)} where process 0 has {first.get(key)}; start all with the same command, software "
                "and files"
            )


def run_once_per_host(make: Callable[[], T]) -> T:
    """What `make` makes on disk is made once: by process 0, then by one process of each other host, and all others find it there."""
    hosts, me = all_gather(socket.gethostname()), service.global_state.process_id
    turn = 0 if me == 0 else 1 if hosts.index(hosts[me]) == me else 2
    for now in range(3):
        with barrier():
            if now == turn:
                made = make()
    return made
