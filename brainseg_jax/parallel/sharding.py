"""Sharding over a mesh ("data", "fsdp"): batches over both axes, the state over "fsdp" by the shape of each leaf.

(n, 1) is data-parallel, (1, n) fully sharded, others hybrid; no other file depends on the difference. Axes are Auto: the partitioner of
`jax.jit` propagates these shardings through the step.
"""

from collections.abc import Callable, Iterator, Sequence
from math import lcm, log
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from brainseg_jax.core.errors import InputError

# Size below which a leaf is replicated: sharding biases and norms saves nothing and costs a collective each.
MIN_SHARDED = 2**16


def make_mesh(data: int, fsdp: int, devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of `data` × `fsdp` devices; one of the two may be -1: all remaining devices. Devices of a process are adjacent.

    Raises InputError, with the nearest possible mesh, if they do not fit; with several processes all devices have to be used.
    """
    n, processes = len(devices), len({device.process_index for device in devices})
    if data == -1 and fsdp == -1:
        raise InputError("mesh.data and mesh.fsdp are both -1; set one of them, e.g. mesh.fsdp=1")
    shape = (n // fsdp if data == -1 and fsdp else data, n // data if fsdp == -1 and data else fsdp)
    sizes = [n] if processes > 1 else [size for size in range(1, n + 1) if n % size == 0]
    if min(shape) < 1 or shape[0] * shape[1] not in sizes:
        rule = f" of {processes} processes; their product must be {n}" if processes > 1 else f"; their product must divide {n}"
        nearest = "mesh.data={} and mesh.fsdp={}".format(*nearest_mesh((data, fsdp), n, sizes))
        raise InputError(f"mesh.data {data} and mesh.fsdp {fsdp} do not fit {n} devices{rule}: use e.g. {nearest}")
    grid = np.asarray(sorted(devices, key=lambda device: (device.process_index, device.id))[: shape[0] * shape[1]]).reshape(shape)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def nearest_mesh(asked: tuple[int, int], n: int, sizes: Sequence[int]) -> tuple[int, int]:
    """The mesh of one of `sizes` devices whose axes differ by the smallest factors from `asked`, where -1 is all remaining of n; among
    equals the one closer in "fsdp"."""
    data, fsdp = (log(max(size, 1) if size != -1 else n / max(other, 1)) for size, other in zip(asked, asked[::-1], strict=True))
    meshes = [(a, size // a) for size in sizes for a in range(1, size + 1) if size % a == 0]
    distances = lambda mesh: (abs(log(mesh[0]) - data), abs(log(mesh[1]) - fsdp))  # noqa: E731
    return min(meshes, key=lambda mesh: (round(sum(distances(mesh)), 6), distances(mesh)[1]))


def check_batch(batch: int, accumulate: int, mesh: Mesh, crops_per_volume: int = 1) -> None:
    """Raises InputError unless the batch divides evenly: crops over devices in each part of a step, and volumes over processes."""
    processes = len({device.process_index for device in mesh.devices.flat})
    n = lcm(mesh.size * accumulate, processes * crops_per_volume)
    if batch % n:
        near = max(1, round(batch / n)) * n
        reading = f" and {processes} processes × {crops_per_volume} crops of a volume" if processes * crops_per_volume > 1 else ""
        raise InputError(f"data.batch {batch} does not divide over {mesh.size} devices × {accumulate} parts{reading}; use e.g. {near}")


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """The sharding of each leaf of an (abstract) state: its largest axis divisible by "fsdp" is sharded, the last of equals; small leaves
    are replicated."""
    n = mesh.shape["fsdp"]

    def sharding(leaf: Any) -> NamedSharding:
        axes = [i for i, size in enumerate(leaf.shape) if size % n == 0]
        if n == 1 or leaf.size < MIN_SHARDED or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda i: (leaf.shape[i], i))
        return NamedSharding(mesh, PartitionSpec(*(["fsdp" if i == axis else None for i in range(axis + 1)])))

    return jax.tree.map(sharding, state)


def gather_params(places: Any) -> Callable[[Any], Any]:
    """A function that gathers parameters with the shardings `places` for computing, and shards their gradients alike.

    Without it the partitioner propagates the sharding of parameters to activations, and communicates these.
    """

    @jax.custom_vjp
    def whole(params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, jax.tree.map(lambda place: replicated(place.mesh), places))

    whole.defvjp(lambda params: (whole(params), None), lambda _, g: (jax.lax.with_sharding_constraint(g, places),))
    return whole


def per_device(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function f, whose arguments and results have samples on the leading axis, applied to each device's own samples.

    The partitioner does not recognise that samples are independent in a loop or a gather, and would give every device the whole batch.
    Without a mesh, or if samples do not divide over it, f is unchanged.
    """

    def on_shards(*samples: Any) -> Any:
        rows = _rows_of(samples)
        if rows is None:
            return f(*samples)
        return jax.shard_map(f, in_specs=rows, out_specs=rows, check_vma=False)(*samples)

    return on_shards


def gather_batch(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function f of dependent samples, computed on every device for the whole batch, of which each keeps its own samples.

    The batch is gathered once, before f: in a loop over samples the partitioner would gather it in every iteration.
    """

    def on_batch(*samples: Any) -> Any:
        rows = _rows_of(samples)
        if rows is None:
            return f(*samples)
        out = f(*jax.lax.with_sharding_constraint(samples, PartitionSpec()))
        return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(out, PartitionSpec()), rows)

    return on_batch


def _rows_of(samples: Any) -> PartitionSpec | None:
    """The partition of samples over the current mesh; None without a mesh, or if they do not divide over it."""
    mesh = jax.sharding.get_abstract_mesh()
    divides = mesh.axis_names and len(jax.tree.leaves(samples)[0]) % mesh.size == 0
    return PartitionSpec(mesh.axis_names) if divides else None


def put_batches(batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    """The global arrays of batches, with each process's rows as its part; they are transferred in the stored type."""
    rows = batch_sharding(mesh)
    for batch in batches:
        yield {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}


def on_one_device(tree: Any) -> Any:
    """Whole copies of a tree's arrays on one device of this process. All processes have to call it, since they may hold parts."""

    def local_copy(leaf: jax.Array) -> jax.Array:
        whole = leaf if leaf.is_fully_replicated else jax.device_put(leaf, replicated(leaf.sharding.mesh))
        return whole.addressable_data(0)

    return jax.tree.map(local_copy, tree)
