"""What differs between releases of JAX: flags that the installed one does not know are left out, and what it moved is said in a line."""

import importlib
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.runtime import known_flags, known_options, private_of_jax
from brainseg_jax.models.attention import flash
from brainseg_jax.parallel import launch, service, signals, sync
from brainseg_jax.planning import compilation
from brainseg_jax.planning.compilation import Place
from brainseg_jax.planning.gpus import gpu

LEVEL = "--xla_backend_optimization_level=0"


@pytest.fixture
def gone(monkeypatch):
    """Has JAX be one that no longer has a module, loaded though it may be."""

    def drop(module):
        parent, _, name = module.rpartition(".")
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delattr(importlib.import_module(parent), name, raising=False)

    return drop


def test_flags_that_xla_does_not_know_are_left_out():
    assert known_flags(LEVEL, "--xla_no_such_flag=1") == [LEVEL]


def test_options_that_xla_does_not_know_are_left_out():
    assert known_options(xla_backend_optimization_level=1, xla_no_such_option=True) == {"xla_backend_optimization_level": 1}


def test_a_plan_sets_a_flag_that_xla_knows_and_leaves_others_as_they_were(monkeypatch):
    for name in ("JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
    for flag, there in ((compilation.FLAG, [LEVEL, compilation.FLAG]), ("--xla_no_such_flag=1", [LEVEL])):
        monkeypatch.setattr(compilation, "FLAG", flag)
        monkeypatch.setenv("XLA_FLAGS", LEVEL)
        compilation.without_gpus()
        assert compilation.os.environ["XLA_FLAGS"].split() == there


def test_what_jax_has_is_found():
    assert private_of_jax("jax:jit", "") is jax.jit
    assert private_of_jax("jax.numpy", "") is jnp


@pytest.mark.parametrize("address", ["jax._src.no_such_module:name", "jax._src.distributed:no_such_name", "jax.no.such"])
def test_what_jax_has_no_more_is_said_in_a_line(address):
    with pytest.raises(InputError) as error:
        private_of_jax(address, "this needs it")
    assert str(error.value) == f'this needs it, and JAX {jax.__version__} has no {address.replace(":", ".")}; pip install "jax<0.13"'


def test_without_pallas_the_kernel_that_is_always_there_is_named(gone):
    gone("jax.experimental.pallas.ops.gpu.attention")
    q = jnp.ones((1, 4, 1, 8))
    with pytest.raises(InputError, match=r"'pallas' \(attention=auto needs none\), and JAX .* has no .*; pip install"):
        flash(q, q, q, interpret=True)


def test_a_plan_without_what_it_compiles_by_is_a_line(gone, small):
    compilation.devices.cache_clear()
    gone("jax.experimental.topologies")
    with pytest.raises(InputError, match=r"planning compiles for GPUs .* has no jax.experimental.topologies"):
        compilation.devices(Place(gpu("h100"), 1))
    gone("jax._src.cudnn.fused_attention_stablehlo")
    with pytest.raises(InputError, match=r"attention=xla does not.* has no jax._src.cudnn.fused_attention_stablehlo\.check_cudnn_version"):
        compilation.compiled(small(attention="cudnn", dtype="bfloat16"), Place(gpu("h100"), 1), 8)


@pytest.mark.parametrize("there", ["nothing", "another state"])
def test_without_jaxs_service_a_process_is_alone_and_several_are_refused(gone, monkeypatch, there):
    if there == "nothing":
        gone("jax._src.distributed")
    else:
        monkeypatch.setattr("jax._src.distributed.global_state", ModuleType("without a client"))
    monkeypatch.setattr(service, "global_state", service.find_state())
    with launch.joined(None), sync.barrier(), signals.stop_requests(0) as (asked, _):
        assert sync.all_gather("a") == ["a"] and sync.broadcast_from_first(lambda: 3) == sync.run_once_per_host(lambda: 3) == 3
        assert not asked(1)
    with (
        pytest.raises(InputError, match=r"^2 processes talk by jax._src.distributed.global_state.* --processes=1$"),
        launch.joined(launch.Start("localhost:1", 2, 0)),
    ):
        pass
