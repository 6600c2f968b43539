"""Compilation of a config's training step for GPUs that are not present, and the facts of the compiled program."""

import importlib.util
import os
import time
from functools import lru_cache
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.runtime import known_flags, private_of_jax
from brainseg_jax.planning.gpus import GPU, target
from brainseg_jax.planning.hlo import Facts, facts
from brainseg_jax.training.memory import Memory, fits, memory

PLUGINS = {"jax_cuda12_plugin": ("nvidia.cuda_nvcc",), "jax_cuda13_plugin": ("nvidia.cu13",)}
CUDNN = 91000  # 9.10, as in `gpus.target`
# Without a GPU XLA's Triton matrix products cannot be autotuned: cuBLAS takes all products.
FLAG = "--xla_gpu_enable_triton_gemm=false"


class Place(NamedTuple):
    """Where a step is to run."""

    card: GPU
    devices: int
    hosts: int = 1


class Compiled(NamedTuple):
    """A compiled step. `dearest` and `cheapest`: its facts with the most and the least expensive branch of each conditional."""

    place: Place
    mesh: dict[str, int]
    memory: Memory
    dearest: Facts
    cheapest: Facts
    text: str
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether it fits the memory of each device."""
        return fits(self.memory.needed, self.place.card.memory)


def missing() -> str:
    """A message on what has to be installed to compile for GPUs; "" if nothing."""
    for plugin, compilers in PLUGINS.items():
        if importlib.util.find_spec(plugin):
            absent = [name for name in compilers if not _found(name)]
            return f'{plugin} is there without {absent[0]}; pip install "brainseg_jax[plan]"' if absent else ""
    return 'CUDA\'s compiler is missing, which needs no GPU; pip install "brainseg_jax[plan]"'


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def without_gpus() -> None:
    """Makes JAX compute on the CPU, compile for GPUs, and not log missing GPUs. To be called before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    given = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*given, *known_flags(*{FLAG}.difference(given))])


@lru_cache
def devices(place: Place) -> tuple[Any, ...]:
    """The JAX devices of a place. Raises InputError if they do not divide evenly over the hosts."""
    if place.devices < 1 or place.hosts < 1 or place.devices % place.hosts:
        near = 8 * max(1, place.hosts)
        raise InputError(f"--devices={place.devices} do not spread over --hosts={place.hosts}; use e.g. --devices={near}")
    grid = f"1x{place.hosts}x{place.devices // place.hosts}"
    describe = private_of_jax("jax.experimental.topologies:get_topology_desc", "planning compiles for GPUs that are not there")
    return tuple(describe("", platform="cuda", target_config=target(place.card), topology=grid).devices)


def build(config: ConfigDict, place: Place, steps: int) -> Any:
    """The program of a config at a place. Raises InputError for a mesh or a batch that does not fit its devices."""
    from brainseg_jax.parallel import sharding
    from brainseg_jax.training.program import experiment, program

    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, devices(place))
    sharding.check_batch(config.data.batch, config.optim.accumulate, mesh, config.data.crops_per_volume)
    return program(config, experiment(config), mesh, steps)


def compiled(config: ConfigDict, place: Place, steps: int) -> Compiled:
    """The compiled step of a config at a place, with its facts. Raises InputError as `build` does."""
    if config.attention == "cudnn":
        # JAX checks the version of cuDNN, which is not installed here: it gets the one of the compilation target.
        need = "attention is 'cudnn', which takes a GPU to be compiled (attention=xla does not)"
        kernel = "jax._src.cudnn.fused_attention_stablehlo"
        private_of_jax(f"{kernel}:check_cudnn_version", need)
        private_of_jax(kernel, need).check_cudnn_version = lambda: CUDNN
    program = build(config, place, steps)
    began = time.perf_counter()
    executable = program.lower().compile()
    text, took = executable.as_text(), time.perf_counter() - began
    return Compiled(place, dict(program.mesh.shape), memory(executable), facts(text, max), facts(text, min), text, took)
