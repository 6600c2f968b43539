"""Where arrays lie: a mesh ("data", "fsdp"), batches cut over both axes, the state cut over "fsdp" by the shape of each leaf.

(n, 1) is data-parallel, (1, n) fully sharded, anything else hybrid; no other file knows the difference. Axes are Auto: the partitioner
of `jax.jit` follows these placements through the step.
"""

from collections.abc import Callable, Iterator, Sequence
from math import lcm, log
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from brainseg_jax.core.errors import InputError

# Below this many numbers a leaf is copied: cutting biases and norms saves nothing and costs a collective each.
MIN_SHARDED = 2**16


def make_mesh(data: int, fsdp: int, devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of `data` × `fsdp` devices; one of the two may be -1: as many as are left. Devices of a process stand together.

    Raises InputError, with the nearest mesh that works, where they do not fit; of several processes none may be left without work.
    """
    n, processes = len(devices), len({device.process_index for device in devices})
    if data == -1 and fsdp == -1:
        raise InputError("mesh.data and mesh.fsdp are both -1; set one of them, e.g. mesh.fsdp=1")
    shape = (n // fsdp if data == -1 and fsdp else data, n // data if fsdp == -1 and data else fsdp)
    sizes = [n] if processes > 1 else [size for size in range(1, n + 1) if n % size == 0]
    if min(shape) < 1 or shape[0] * shape[1] not in sizes:
        of_all = f" of {processes} processes; their product must be {n}" if processes > 1 else f"; their product must divide {n}"
        near = "mesh.data={} and mesh.fsdp={}".format(*nearest_mesh((data, fsdp), n, sizes))
        raise InputError(f"mesh.data {data} and mesh.fsdp {fsdp} do not fit {n} devices{of_all}: use e.g. {near}")
    grid = np.asarray(sorted(devices, key=lambda device: (device.process_index, device.id))[: shape[0] * shape[1]]).reshape(shape)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def nearest_mesh(asked: tuple[int, int], n: int, sizes: Sequence[int]) -> tuple[int, int]:
    """The mesh of one of `sizes` devices whose axes are by the smallest factors off those that were asked for, of equals the one that is
    less off in "fsdp"; -1 asks for what is left of n."""
    data, fsdp = (log(max(size, 1) if size != -1 else n / max(other, 1)) for size, other in zip(asked, asked[::-1], strict=True))
    meshes = [(a, size // a) for size in sizes for a in range(1, size + 1) if size % a == 0]
    off = lambda mesh: (abs(log(mesh[0]) - data), abs(log(mesh[1]) - fsdp))  # noqa: E731
    return min(meshes, key=lambda mesh: (round(sum(off(mesh)), 6), off(mesh)[1]))


def check_batch(batch: int, accumulate: int, mesh: Mesh, crops_per_volume: int = 1) -> None:
    """Raises InputError unless in each part of a step every device gets as many crops, and in a step every process as many volumes."""
    processes = len({device.process_index for device in mesh.devices.flat})
    n = lcm(mesh.size * accumulate, processes * crops_per_volume)
    if batch % n:
        near = max(1, round(batch / n)) * n
        reading = f" and {processes} processes × {crops_per_volume} crops of a volume" if processes * crops_per_volume > 1 else ""
        raise InputError(f"data.batch {batch} does not divide over {mesh.size} devices × {accumulate} parts{reading}; use e.g. {near}")


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
        if n == 1 or leaf.size < MIN_SHARDED or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda i: (leaf.shape[i], i))
        return NamedSharding(mesh, PartitionSpec(*(["fsdp" if i == axis else None for i in range(axis + 1)])))

    return jax.tree.map(place, state)


def gather_params(places: Any) -> Callable[[Any], Any]:
    """A function of parameters that lie as `places` say: whole for what is computed with them, their gradients cut as they are.

    Without it the partitioner takes a cut parameter as a wish to cut what is computed with it too, and sends activations about.
    """

    @jax.custom_vjp
    def whole(params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, jax.tree.map(lambda place: replicated(place.mesh), places))

    whole.defvjp(lambda params: (whole(params), None), lambda _, g: (jax.lax.with_sharding_constraint(g, places),))
    return whole


def per_device(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of samples, the leading axis of all that it takes and gives, as each device of the mesh that is set computes its own.

    The partitioner does not see through a loop or a gather that samples have nothing to do with each other: without this it would give
    every device the whole batch. Nothing changes where no mesh is set, or samples do not divide over it.
    """

    def over_devices(*samples: Any) -> Any:
        rows = _rows_of(samples)
        if rows is None:
            return f(*samples)
        return jax.shard_map(f, in_specs=rows, out_specs=rows, check_vma=False)(*samples)

    return over_devices


def gather_batch(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of samples that looks from one to the other, as each device computes it of the whole batch and keeps its own samples.

    All is sent once, before: of a loop over samples the partitioner would send the whole batch in every turn.
    """

    def on_each(*samples: Any) -> Any:
        rows = _rows_of(samples)
        if rows is None:
            return f(*samples)
        out = f(*jax.lax.with_sharding_constraint(samples, PartitionSpec()))
        return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(out, PartitionSpec()), rows)

    return on_each


def _rows_of(samples: Any) -> PartitionSpec | None:
    """How samples lie on the mesh that is set; None if there is none, or they do not divide over it."""
    mesh = jax.sharding.get_abstract_mesh()
    divides = mesh.axis_names and len(jax.tree.leaves(samples)[0]) % mesh.size == 0
    return PartitionSpec(mesh.axis_names) if divides else None


def put_batches(batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    """Each process's rows become its part of one global array; stored types travel, and become floats on the device."""
    rows = batch_sharding(mesh)
    for batch in batches:
        yield {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}


def on_one_device(tree: Any) -> Any:
    """Whole copies of a tree's arrays on one device of this process. Every process has to call it: parts may lie with others."""

    def here(leaf: jax.Array) -> jax.Array:
        whole = leaf if leaf.is_fully_replicated else jax.device_put(leaf, replicated(leaf.sharding.mesh))
        return whole.addressable_data(0)

    return jax.tree.map(here, tree)
