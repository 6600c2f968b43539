"""The training program of a config on a mesh: network, optimizer, abstract state with its sharding, and the step, ready to compile.

`train` builds it on the available devices, `plan` on a topology of GPUs that need not exist: the same code, so the same step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from brainseg_jax.core.errors import InputError
from brainseg_jax.data import labels
from brainseg_jax.data.augment.prepare import enlarged_crop, prepare_eval, prepare_train
from brainseg_jax.data.synthesis.generator import Generator, generator_of
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.parallel import sharding
from brainseg_jax.training import optim
from brainseg_jax.training.step import Batch, Metrics, Objective, TrainState, init_params, init_state, make_train_step


class Program(NamedTuple):
    """`init()` makes the initial state; `like` and `batch` are the abstract arguments of `step`, with their sharding on `mesh`."""

    objective: Objective
    mesh: Mesh
    init: Callable[[], TrainState]
    like: TrainState
    batch: Batch
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

    @property
    def places(self) -> TrainState:
        """The sharding of every leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.like)

    def lower(self) -> jax.stages.Lowered:
        """The lowered step for the program's shapes and shardings; it donates the state."""
        out = self.places, sharding.replicated(self.mesh)
        with jax.set_mesh(self.mesh):
            return jax.jit(self.step, donate_argnums=0, out_shardings=out).lower(self.like, self.batch)


def resolve_auto(config: ConfigDict, on_cpu: bool, resolved: dict[str, dict[str, Any]] | None = None) -> None:
    """Fills in the config's `dtype` if it is "auto", by device, and `classes` if it is 0, by the label table.

    In `resolved`, which goes into config.json and cards, an automatic dtype stays "auto", beside the one that was used: `network.load`
    chooses again on the device where it runs. The number of classes is entered.
    """
    resolved = {} if resolved is None else resolved
    if config.dtype == "auto":
        config.dtype = "float32" if on_cpu else "bfloat16"
        resolved.setdefault("dtype", {"value": "auto"})["used"] = config.dtype
    if config.objective == "segmentation" and config.data.labels and not config.classes:
        config.classes = 1 + len(labels.read_table(config.data.labels).structures)
        resolved.setdefault("classes", {})["value"] = config.classes


class Experiment(NamedTuple):
    """The parts of a config that need no mesh: objective, label table (None without labels), and generator of synthetic scans, if any."""

    objective: Objective
    target: labels.Table | None
    generator: Generator | None

    @property
    def prior(self) -> str:
        """The SHA-256 of the synthesis's table of intensities (synth.prior.table); "" without one."""
        return self.generator.prior.sha256 if self.generator and self.generator.prior else ""


def experiment(config: ConfigDict) -> Experiment:
    """The experiment of a config. Raises InputError for a label table or synth.prior.table that cannot be read or does not fit."""
    objective = OBJECTIVES[config.objective](config)
    target = labels.read_table(config.data.labels) if objective.labels else None
    if target and config.classes != 1 + len(target.structures):
        raise InputError(f"classes is {config.classes}; table {target.name} needs {1 + len(target.structures)}, background included: use 0")
    return Experiment(objective, target, generator_of(config, target))


def program(config: ConfigDict, what: Experiment, mesh: Mesh, steps: int) -> Program:
    """The program of an experiment for a run of `steps` steps. Raises InputError for an attention kernel its devices do not have."""
    objective, target, generator = what
    one_crop, params = sample_of(config), shapes(config, objective, mesh)
    optimizer = optim.optimizer(config.optim, steps, params)

    def init() -> TrainState:
        return init_state(init_params(objective, one_crop, config.seed), optimizer)

    abstract = jax.eval_shape(init)
    places, rows = sharding.state_sharding(mesh, abstract), sharding.batch_sharding(mesh)
    like = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, places)
    parts = parts_of_batch(config).items()
    batch = {name: jax.ShapeDtypeStruct((config.data.batch, *shape), dtype, sharding=rows) for name, (shape, dtype) in parts}
    prepare = prepare_train(config, labels.swap(target) if target else None, generator)
    gather = sharding.gather_params(places.params)
    step = make_train_step(objective, optimizer, prepare, config.seed, config.optim.accumulate, gather)
    return Program(objective, mesh, init, like, batch, step)


def shapes(config: ConfigDict, objective: Objective, mesh: Mesh) -> Any:
    """The abstract parameters of a config. Raises InputError for an attention kernel that the mesh's devices do not have."""
    if config.attention in ("cudnn", "pallas") and mesh.devices.flat[0].platform == "cpu":
        raise InputError(f"attention is {config.attention!r}, a kernel of GPUs, and this is a CPU; use attention=auto")
    return jax.eval_shape(lambda: init_params(objective, sample_of(config), config.seed))


def parts_of_batch(config: ConfigDict) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape per sample and dtype of the arrays of a training batch: crops, or enlarged patches with the corner of the crop in each."""
    size = enlarged_crop(config)
    place = {"place": ((3,), np.dtype(np.int32))} if size != tuple(config.data.crop) else {}
    labels_only = {"labels_only": ((), np.dtype(bool))} if config.synth.share else {}
    return parts_of_sample(config, size) | place | labels_only


def parts_of_sample(config: ConfigDict, size: tuple[int, int, int]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of a sample's arrays, for a box of `size` voxels."""
    parts = {"image": ((*size, config.channels), np.dtype(config.data.dtype))}
    return parts | ({"label": (size, np.min_scalar_type(config.classes))} if config.objective == "segmentation" else {})


def sample_of(config: ConfigDict) -> Batch:
    """A batch of one empty sample as an objective takes it, to trace shapes."""
    parts = parts_of_sample(config, tuple(config.data.crop))
    return prepare_eval(jax.random.key(0), {name: jnp.zeros((1, *shape), dtype) for name, (shape, dtype) in parts.items()})
