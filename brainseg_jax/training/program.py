"""What a config trains, on any mesh: network, optimizer, the state's shapes and places, and the step, ready to be compiled.

`train` builds it on the devices that there are, `plan` on a topology of GPUs that are not there: it is the same code, and so the same step.
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
    """`init()` makes the state before the first batch; `like` and `batch` are what `step` takes, abstract, with their places on `mesh`."""

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
        """The step for the program's shapes and places. The state that it is given is overwritten."""
        out = self.places, sharding.replicated(self.mesh)
        with jax.set_mesh(self.mesh):
            return jax.jit(self.step, donate_argnums=0, out_shardings=out).lower(self.like, self.batch)


def resolve_auto(config: ConfigDict, on_cpu: bool, resolved: dict[str, dict[str, Any]] | None = None) -> None:
    """The type to compute in and the number of classes, where a config leaves them to the place and the labels, are filled in.

    In `resolved`, which goes into config.json and cards, a type that was left to the place stays "auto", with what was used beside it: a
    network that was trained on a GPU is no network of bfloat16, and `network.load` asks the place where it is loaded. The number of classes
    belongs to the labels wherever they are.
    """
    resolved = {} if resolved is None else resolved
    if config.dtype == "auto":
        config.dtype = "float32" if on_cpu else "bfloat16"
        resolved.setdefault("dtype", {"value": "auto"})["used"] = config.dtype
    if config.objective == "segmentation" and config.data.labels and not config.classes:
        config.classes = 1 + len(labels.read_table(config.data.labels).structures)
        resolved.setdefault("classes", {})["value"] = config.classes


class Experiment(NamedTuple):
    """What a config trains: its objective; the table of its classes, where there are labels; what makes scans of them, if anything."""

    objective: Objective
    target: labels.Table | None
    generator: Generator | None

    @property
    def prior(self) -> str:
        """The SHA-256 of the table that made scans are to look like; "" without one."""
        return self.generator.prior.sha256 if self.generator and self.generator.prior else ""


def experiment(config: ConfigDict) -> Experiment:
    """The experiment of a config. Raises InputError for labels, or a table of made scans' looks, that cannot be read or do not fit."""
    objective = OBJECTIVES[config.objective](config)
    target = labels.read_table(config.data.labels) if objective.labels else None
    if target and config.classes != 1 + len(target.structures):
        raise InputError(f"classes is {config.classes}; table {target.name} needs {1 + len(target.structures)}, background included: use 0")
    return Experiment(objective, target, generator_of(config, target))


def program(config: ConfigDict, what: Experiment, mesh: Mesh, steps: int) -> Program:
    """The program of an experiment whose run has `steps` steps. InputError for a kernel of attention that its devices do not have."""
    objective, target, generator = what
    one_crop, params = sample_of(config), shapes(config, objective, mesh)
    optimizer = optim.optimizer(config.optim, steps, params)

    def init() -> TrainState:
        return init_state(init_params(objective, one_crop, config.seed), optimizer)

    abstract = jax.eval_shape(init)
    places, rows = sharding.state_sharding(mesh, abstract), sharding.batch_sharding(mesh)
    like = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, places)
    batch = {
        name: jax.ShapeDtypeStruct((config.data.batch, *shape), dtype, sharding=rows)
        for name, (shape, dtype) in parts_of_batch(config).items()
    }
    prepare = prepare_train(config, labels.swap(target) if target else None, generator)
    whole = sharding.gather_params(places.params)
    step = make_train_step(objective, optimizer, prepare, config.seed, config.optim.accumulate, whole)
    return Program(objective, mesh, init, like, batch, step)


def shapes(config: ConfigDict, objective: Objective, mesh: Mesh) -> Any:
    """The parameters of a config, abstract. Raises InputError for a kernel of attention that the mesh's devices do not have."""
    if config.attention in ("cudnn", "pallas") and mesh.devices.flat[0].platform == "cpu":
        raise InputError(f"attention is {config.attention!r}, a kernel of GPUs, and this is a CPU; use attention=auto")
    return jax.eval_shape(lambda: init_params(objective, sample_of(config), config.seed))


def parts_of_batch(config: ConfigDict) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape of each sample and stored type of what a training batch holds: crops, or patches and where in each the crop begins."""
    size = enlarged_crop(config)
    place = {"place": ((3,), np.dtype(np.int32))} if size != tuple(config.data.crop) else {}
    labels_only = {"labels_only": ((), np.dtype(bool))} if config.synth.share else {}
    return parts_of_sample(config, size) | place | labels_only


def parts_of_sample(config: ConfigDict, size: tuple[int, int, int]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and stored type of what is known of a box of so many voxels."""
    parts = {"image": ((*size, config.channels), np.dtype(config.data.dtype))}
    return parts | ({"label": (size, np.min_scalar_type(config.classes))} if config.objective == "segmentation" else {})


def sample_of(config: ConfigDict) -> Batch:
    """A batch of one empty sample as an objective sees it, for shapes."""
    parts = parts_of_sample(config, tuple(config.data.crop))
    return prepare_eval(jax.random.key(0), {name: jnp.zeros((1, *shape), dtype) for name, (shape, dtype) in parts.items()})
