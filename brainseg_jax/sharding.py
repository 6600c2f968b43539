"""Where arrays lie: a mesh ("data", "fsdp"), batches cut over both axes, the state cut over "fsdp" by the shape of each leaf.

(n, 1) is data-parallel, (1, n) fully sharded, anything else hybrid; no other file knows the difference. Axes are Auto: the partitioner
of `jax.jit` follows these placements through the step.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from brainseg_jax.errors import InputError

# Below this many numbers a leaf is copied: cutting biases and norms saves nothing and costs a collective each.
SMALLEST_CUT = 2**16


def make_mesh(data: int, fsdp: int, devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of `data` × `fsdp` devices; one of the two may be -1: as many as are left. Raises InputError where they do not fit."""
    n = len(devices)
    if data == -1 and fsdp == -1:
        raise InputError("mesh.data and mesh.fsdp are both -1; set one of them, e.g. mesh.fsdp=1")
    shape = (n // fsdp if data == -1 and fsdp else data, n // data if fsdp == -1 and data else fsdp)
    if min(shape) < 1 or n % (shape[0] * shape[1]):
        raise InputError(f"mesh.data {data} and mesh.fsdp {fsdp} do not fit {n} devices; their product must divide {n}")
    grid = np.asarray(devices[: shape[0] * shape[1]]).reshape(shape)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch(batch: int, accumulate: int, mesh: Mesh) -> None:
    """Raises InputError unless every device gets the same number of crops in each part of a step."""
    n = mesh.size * accumulate
    if batch % n:
        nearest = max(1, round(batch / n)) * n
        raise InputError(f"data.batch {batch} does not divide over {mesh.size} devices × {accumulate} parts; use e.g. {nearest}")


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """For each leaf of an (abstract) state: its largest axis that divides by "fsdp" is cut, the last of equals; small leaves are copied."""
    n = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        axes = [i for i, size in enumerate(leaf.shape) if size % n == 0]
        if n == 1 or leaf.size < SMALLEST_CUT or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda i: (leaf.shape[i], i))
        return NamedSharding(mesh, PartitionSpec(*(["fsdp" if i == axis else None for i in range(axis + 1)])))

    return jax.tree.map(place, state)


def to_devices(batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    """Each process's rows become its part of one global array; stored types travel, and become floats on the device."""
    rows = batch_sharding(mesh)
    for batch in batches:
        yield {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}
