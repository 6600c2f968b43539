"""Planning: what is read out of a compiled program and what follows from it, by hand-made programs whose numbers were computed by hand."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from brainseg_jax.cli.plan import advice
from brainseg_jax.config.checks import check
from brainseg_jax.config.resolve import of_file
from brainseg_jax.core.errors import InputError
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.parallel.sharding import make_mesh
from brainseg_jax.planning import compilation, gpus, plan, roofline
from brainseg_jax.planning.compilation import Place
from brainseg_jax.planning.flops import flops
from brainseg_jax.planning.hlo import Array, Collective, Facts, Kernel, facts, parse
from brainseg_jax.planning.search import MOST, largest
from brainseg_jax.training import memory
from brainseg_jax.training.program import experiment, program, sample_of
from brainseg_jax.training.step import init_params

ROOT = Path(__file__).parents[2]

# A loop of three turns with a matrix product and an all-reduce that a fusion runs beside; a branch; a convolution; a gather with nothing
# beside it; and a fusion that reads one slice of a stack and writes one slice of it.
HLO = (Path(__file__).parent / "plan_step.hlo").read_text()
PRODUCT = Kernel("product", "bf16", 2 * 8 * 32 * 16, 2 * (8 * 16 + 16 * 32 + 8 * 32) + 1024, 3)
CONVOLUTION = Kernel("convolution", "bf16", 2 * (2 * 4**3) * 5 * 3 * 27, 2 * (2 * 3 * 64 + 5 * 3 * 27 + 2 * 5 * 64), 1)
FUSION = Kernel("fusion", "f32", 0, 2 * 4000, 1)
UPDATE = Kernel("fusion", "f32", 0, 400 + 4 + 400 + 400, 1)  # a slice, the index and the row are read, a slice is written


def test_kernels_and_collectives_are_read():
    assert facts(HLO) == Facts(
        (PRODUCT, FUSION, CONVOLUTION, UPDATE),
        (
            Collective("all-reduce", 4000, (0, 1, 2, 3), 3, True, {"gemm": PRODUCT}),
            Collective("all-gather", 16000, (0, 1, 2, 3), 1, True, {}),
        ),
    )


def test_the_cheapest_way_through_a_branch_leaves_its_kernel_out():
    assert facts(HLO, min).kernels == (PRODUCT, CONVOLUTION, UPDATE)


def test_sums_count_what_runs_several_times():
    assert facts(HLO).flops == 3 * PRODUCT.flops + CONVOLUTION.flops
    assert facts(HLO).bytes == 3 * PRODUCT.bytes + FUSION.bytes + CONVOLUTION.bytes + UPDATE.bytes


def test_a_kernel_whose_work_is_not_known_is_named_and_never_timed():
    unknown = facts(HLO.replace("__cudnn$convForward", "triton_kernel_call"))
    assert unknown.unknown == ("triton_kernel_call",)
    with pytest.raises(ValueError, match="triton_kernel_call"):
        roofline.seconds(unknown, gpus.gpu("h100"), roofline.FAST)


@pytest.mark.parametrize(
    ("target", "name", "kind", "products"),
    [
        ("__cudnn$fmhaSoftmax", "", "attention", 2),
        ("__cudnn$fmhaSoftmaxBackward", "", "attention", 5),
        ("__gpu$xla.gpu.triton", "jit(step)/attn/mha_forward/pallas_call", "attention", 2),
        ("__gpu$xla.gpu.triton", "jit(step)/attn/mha_backward/pallas_call", "attention", 7),
        ("__gpu$xla.gpu.triton", "jit(step)/attn/mha_preprocess_backward/pallas_call", "fusion", 0),
        ("__gpu$xla.gpu.triton", "jit(step)/other/pallas_call", "other", None),
    ],
)
def test_kernels_of_attention(target, name, kind, products):
    """q [2 8 4 16], k and v [2 8 4 16]: a product is 2·4·8·8·16 multiply-adds; four arrays of 1024 numbers are moved."""
    array = "bf16[2,8,4,16]{3,2,1,0}"
    operands = "\n".join(f"  %{i} = {array} parameter({at})" for at, i in enumerate("qkv"))
    called = f'custom-call(%q, %k, %v), custom_call_target="{target}", metadata={{op_name="{name}"}}'
    text = f"ENTRY %main (q: {array}) -> {array} {{\n{operands}\n  ROOT %out = {array} {called}\n}}\n"
    assert facts(text).kernels == (Kernel(kind, "bf16", None if products is None else 2 * products * 2 * 4 * 8 * 8 * 16, 4 * 2048, 1),)


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="loop"):
        facts(HLO.replace("known_trip_count", "guessed_trip_count"))


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", (0, 1, 2, 3)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", (0, 1, 2, 3)),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", (0, 4)),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("mesh['axis_0'=8] {'axis_0':(1)2}", (0, 4)),
        ("mesh['axis_0'=8] {'axis_0':(2)2}", (0, 2)),
    ],
)
def test_who_takes_part_in_a_collective(groups, members):
    assert facts(HLO.replace("[1,4]<=[4]", groups)).collectives[1].members == members


def test_a_permutation_is_as_far_as_its_farthest_pair():
    text = HLO.replace("all-gather-start(%branch)", "collective-permute-start(%branch)").replace(
        "replica_groups=[1,4]<=[4]", "source_target_pairs={{0,1},{1,3},{3,0}}"
    )
    assert facts(text).collectives[1].members == (3, 0)


def test_a_reduction_scattered_counts_the_whole_array():
    text = HLO.replace(
        "(f32[10,100]{1,0}, f32[40,100]{1,0}) all-gather-start(%branch)", "(f32[12,100]{1,0}, f32[3,100]{1,0}) reduce-scatter-start(%rows)"
    )
    assert facts(text).collectives[1][:2] == ("reduce-scatter", 4800)


def test_arrays_have_their_bytes():
    assert [Array(name, (3, 5)).bytes for name in ("f32", "bf16", "u8", "pred", "s64", "f8e4m3fn")] == [60, 30, 15, 15, 120, 15]
    assert parse(HLO)[1] == "main"


def test_time_is_the_sum_of_kernels_and_of_what_nothing_hides():
    card, rates = gpus.gpu("a100"), roofline.Rates(0.5, 0.25, 0.5, 0.5, 1e-6)
    product = Kernel("product", "bf16", int(156e9), 1, 2)  # 1 ms at half of 312 TFLOP/s, twice
    moving = Kernel("fusion", "f32", 0, int(1.0195e9), 1)  # 1 ms at half of 2.039 TB/s
    convolution = Kernel("convolution", "f32", int(39e9), 1, 1)  # 1 ms at a quarter of TF32's 156 TFLOP/s
    four, beside = (0, 1, 2, 3), {"moving": moving}
    reduced = Collective("all-reduce", int(300e6), four, 1, True, beside)  # 1.5 × 300 MB at 150 GB/s: 3 ms, of which 1 is hidden
    gathered = Collective("all-gather", int(200e6), four, 1, False, beside)  # 0.75 × 200 MB: 1 ms, and nothing is hidden
    found = Facts((product, moving, convolution), (reduced, gathered))
    assert roofline.seconds(found, card, rates) == pytest.approx(4e-3 + 4e-6 + 2e-3 + 1e-3 + 1e-6, rel=1e-6)
    # Over two hosts the same bytes go through 25 GB/s, unless those that take part are on one of them.
    assert roofline.seconds(found, card, rates, per_host=2) == pytest.approx(4e-3 + 36e-3 - 1e-3 + 12e-3 + 5e-6, rel=1e-4)
    assert roofline.seconds(found, card, rates, per_host=4) == roofline.seconds(found, card, rates)
    # A kernel hides one collective at a time: the second finds nothing left.
    twice = Facts((product, moving, convolution), (reduced, reduced))
    assert roofline.seconds(twice, card, rates) == pytest.approx(4e-3 + 4e-6 + 2e-3 + 3e-3 + 1e-6, rel=1e-6)
    short = reduced._replace(bytes=int(30e6))  # 0.3 ms: three of them are hidden by 1 ms
    assert roofline.seconds(Facts((moving,), (short,) * 3), card, rates) == pytest.approx(1e-3 + 1e-6, rel=1e-6)


def test_flops_of_what_the_result_needs():
    a, b = jnp.zeros((4, 6)), jnp.zeros((6, 10))
    image, kernel = jnp.zeros((2, 5, 5, 3)), jnp.zeros((3, 3, 3, 7))
    one = 2 * 4 * 6 * 10

    def convolved(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def dead(a, b):
        _ = a @ b
        return a + 1

    def looped(a, b):
        return jax.lax.scan(lambda carry, _: (carry + jnp.sum(a @ b), None), 0.0, length=5)[0]

    def chosen(a, b):
        return jax.lax.platform_dependent(a, b, cpu=lambda a, b: a @ b @ b.T @ b, default=lambda a, b: a @ b)

    assert flops(lambda a, b: a @ b, a, b) == one
    assert flops(convolved, image, kernel) == 2 * (2 * 5 * 5 * 7) * 27
    assert flops(dead, a, b) == 0
    assert flops(jax.jit(looped), a, b) == 5 * one
    assert flops(chosen, a, b) == one
    assert flops(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((4, 10))), a, b) == one
    assert flops(jax.grad(lambda a, b: jnp.sum(jnp.sin(a @ b)), argnums=(0, 1)), a, b) == 3 * one
    with pytest.raises(ValueError, match="without a known length"):
        flops(lambda a: jax.lax.while_loop(lambda a: jnp.sum(a) < 9, lambda a: a @ a, a), jnp.zeros((3, 3)))


def config_of(file, variant):
    return plan.settled(of_file(f"{ROOT / 'configs' / file}.py:{variant}"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "variant", "gflop"),
    [
        # As measured of MONAI's networks with PyTorch, for 36 classes; a class fewer is 2 × 16 or 2 × 48 a voxel less.
        ("finetune_unetr", "thirtythree,full", 709.8 - 2 * 2 * 16 * 160**3 / 1e9),
        ("finetune_swin_unetr", "thirtythree,full", 638.9 - 2 * 2 * 48 * 96**3 / 1e9),
    ],
)
def test_forward_flops_are_those_measured_of_the_published_networks(file, variant, gflop):
    config = config_of(file, variant)
    what = experiment(config)
    objective, built = what.objective, program(config, what, make_mesh(1, 1, jax.devices()[:1]), 10)
    rngs = {"drop_path": jax.random.key(0)}
    count = flops(lambda p, b: objective.apply({"params": p}, b, True, rngs=rngs), built.like.params, sample_of(config))
    assert count / 1e9 == pytest.approx(gflop, rel=1e-3)


@pytest.mark.slow
def test_the_small_u_net_costs_what_the_small_swin_unetr_does():
    """Whole steps on heads of 96³ voxels."""

    def cost(file):
        config = config_of(file, "four,heads")
        config.classes = 5
        objective, batch, rngs = OBJECTIVES["segmentation"](config), sample_of(config), {"drop_path": jax.random.key(0)}
        params = jax.eval_shape(lambda: init_params(objective, batch, 0))
        return flops(jax.value_and_grad(lambda p: objective.apply({"params": p}, batch, True, rngs=rngs)[0]), params)

    assert cost("finetune_unet") == pytest.approx(cost("finetune_swin_unetr"), rel=0.02)


@pytest.mark.parametrize(("slope", "base", "limit"), [(3.0, 10.0, 100.0), (1.0, 0.0, 1.0), (2.5, 50.0, 40.0), (0.01, 1.0, 1e6)])
def test_the_largest_batch_is_found_with_few_compilations(slope, base, limit):
    asked = []

    def need(n):
        asked.append(n)
        return base + slope * n + 0.1 * (n % 3)  # nearly a straight line

    expected = max((n for n in range(1, MOST + 1) if base + slope * n + 0.1 * (n % 3) <= limit), default=0)
    assert largest(need, limit) == expected
    assert len(asked) == len(set(asked)) <= 6


def test_the_compiler_is_told_the_card():
    text = gpus.target(gpus.gpu("rtx3090"))
    for fact in ("core_count: 82", "device_memory_size: 25438126080", "major: 8 minor: 6", 'platform_name: "CUDA"'):
        assert fact in text
    with pytest.raises(InputError, match=r"did you mean 'h100'.*rtx3090"):
        gpus.gpu("h1000")


def test_a_step_fits_with_its_margin_into_jax_share_of_the_card(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    gib = 2**30
    assert memory.fits(int(16.5 * gib), 24 * gib)
    assert not memory.fits(int(16.6 * gib), 24 * gib)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert memory.fits(int(16.6 * gib), 24 * gib)
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "much")
    with pytest.raises(InputError, match="XLA_CLIENT_MEM_FRACTION is 'much'"):
        memory.fits(1, gib)


def test_training_refuses_a_step_that_its_device_has_no_room_for():
    compiled = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((256, 256), jnp.float32)).compile()
    need = memory.memory(compiled).needed
    assert need >= 2 * 256 * 256 * 4

    def device(room):
        return SimpleNamespace(memory_stats=lambda: room, device_kind="card")

    memory.check_room(compiled, device({"bytes_limit": need}))
    memory.check_room(compiled, device(None))
    with pytest.raises(InputError, match=r"needs .* GiB .*remat=True.*--search"):
        memory.check_room(compiled, device({"bytes_limit": need - 1}))


@pytest.fixture
def on_cpus(monkeypatch):
    """Eight CPU devices stand for the GPUs of a place."""
    monkeypatch.setattr(compilation, "devices", lambda place: tuple(jax.devices()[: place.devices]))


def test_a_batch_that_does_not_divide_the_mesh_is_refused_with_the_nearest_that_does(small, on_cpus):
    config = small(**{"data.batch": 12, "mesh.data": -1})
    with pytest.raises(InputError, match=r"data.batch 12 .* 8 devices .* use e\.g\. 16"):
        compilation.build(config, Place(gpus.gpu("h100"), 8), 8)


def test_a_mesh_larger_than_the_devices_is_refused(small, on_cpus):
    with pytest.raises(InputError, match="do not fit 2 devices"):
        compilation.build(small(**{"mesh.data": 4}), Place(gpus.gpu("h100"), 2), 8)


def test_devices_that_do_not_spread_over_the_hosts_are_refused():
    with pytest.raises(InputError, match=r"use e\.g\. --devices=24"):
        compilation.devices(Place(gpus.gpu("h100"), 8, 3))


@pytest.mark.parametrize(
    ("gib_a_crop", "advised"),
    [
        (1.0, "largest: --config.data.batch=28 --config.remat=True"),
        (10.0, "largest: --config.data.batch=2 --config.remat=True --config.data.crops_per_volume=1"),
        (200.0, "use a card with more memory, mesh.fsdp, or a smaller data.crop"),
    ],
)
def test_what_the_search_advises_is_what_training_takes(small, on_cpus, monkeypatch, gib_a_crop, advised):
    """On two H100, of each of which 58 GiB are to be had: all crops of a volume are taken together, unless they do not fit."""
    config, place = small(**{"data.batch": 8, "data.crops_per_volume": 4, "mesh.data": 2}), Place(gpus.gpu("h100"), 2)

    def planned(config, place, volumes):
        each = config.data.batch // 2
        compilation.build(config, place, 8)
        check(config)
        needed, data = int(gib_a_crop * (4 if config.remat else 7) * each * 2**30), config.data
        return {
            "fits": memory.fits(needed, place.card.memory), "memory": {"needed": needed}, "batch": data.batch, "per_device": each,
            "crops_per_volume": data.crops_per_volume, "remat": config.remat, "seconds": [1, 2], "steps": 0,
        }  # fmt: skip

    monkeypatch.setattr(plan, "planned", planned)
    assert advice(plan.searched(config, place), config).splitlines()[-1] == advised
    near = plan.nearest(config, place)
    assert "--config.remat=True" in near if "largest" in advised else "not even 1 crop on each device" in near


@pytest.mark.parametrize("attention", ["cudnn", "pallas"])
def test_a_kernel_of_gpus_is_refused_on_a_cpu(small, on_cpus, attention):
    with pytest.raises(InputError, match="use attention=auto"):
        compilation.build(small(attention=attention, dtype="bfloat16"), Place(gpus.gpu("h100"), 1), 8)


def test_what_is_missing_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'pip install "brainseg_jax[plan]"' in compilation.missing()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "jax_cuda12_plugin" else None)
    assert "nvidia.cuda_nvcc" in compilation.missing()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert compilation.missing() == ""


@pytest.mark.slow
def test_augmentation_leaves_each_device_its_own_samples(small):
    """A resampling once gave every device the whole batch: the network then ran eight times."""
    config = small(
        **{"objective": "segmentation", "data.labels": "brain", "classes": 2, "vit.patch": 16, "data.batch": 8, "mesh.data": 8},
        **{"augment.affine.chance": 1.0, "unetr.width": 6, "vit.features": (0, 0, 1)},
    )
    built = program(config, experiment(config), make_mesh(8, 1, jax.devices()), 8)
    text = built.lower().compile().as_text()
    assert "[1,16,16,16,6]" in text
    assert "[8,16,16,16,6]" not in text


needs_compiler = pytest.mark.skipif(bool(compilation.missing()), reason=f"compiles for GPUs: {compilation.missing()}")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_a_small_step_is_compiled_for_gpus(small_flags, devices):
    """As a laptop would: GPU forms are in the program, no CPU forms, and its FLOPs are the analytic ones.

    In float32: for bfloat16 XLA fills up so small matrices to multiples of eight.
    """
    flags = [flag for flag in small_flags if not flag.startswith(("--config.dtype", "--config.mesh", "--config.data.batch"))]
    flags += ["--config.dtype=float32"]
    command = ["-m", "brainseg_jax.plan", "--config=configs/pretrain_vit.py", "--gpu=h100", f"--devices={devices}", "--json", *flags]
    run = subprocess.run(
        [sys.executable, *command, "--config.mesh.data=-1", f"--config.data.batch={2 * devices}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["fits"] and found["mesh"] == {"data": devices, "fsdp": 1}
    assert found["kernels"]["product"]["number"] > 0
    assert found["flops"]["compiled_per_device"] == pytest.approx(found["flops"]["step"] / devices, rel=0.01)
    assert ("all-reduce" in found["collectives"]) == (devices > 1)
    assert found["seconds"][0] < found["seconds"][1]


@needs_compiler
@pytest.mark.slow
def test_gpus_augment_their_own_crops_and_send_gradients_only(small_flags):
    """Of a recipe with every kind of augmentation. A condition on the whole batch once had all crops sent to all GPUs."""
    flags = [flag for flag in small_flags if not flag.startswith(("--config.dtype", "--config.mesh", "--config.data.batch"))]
    network = ["--config.vit.patch=16", "--config.unetr.width=8", "--config.data.batch=8", "--config.mesh.data=-1", "--config.epochs=0"]
    command = ["-m", "brainseg_jax.plan", "--config=configs/finetune_unetr.py:skull,full", "--gpu=h100", "--devices=4", "--json"]
    run = subprocess.run([sys.executable, *command, *flags, *network], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert set(json.loads(run.stdout)["collectives"]) == {"all-reduce"}
