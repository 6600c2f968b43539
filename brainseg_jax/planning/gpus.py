"""GPUs for the compiler and the roofline model; every figure is from a public document, named with the GPU.

The compiler's figures (cores, shared memory, registers, usable memory) are from the target descriptions in the XLA repository. It has none
for the RTX 3090, whose chip is the A6000's (GA102): counts and sizes are NVIDIA's, limits per core the A6000's.
"""

from typing import NamedTuple

from brainseg_jax.core.errors import InputError, did_you_mean


class Architecture(NamedTuple):
    """A chip: its compute capability and, per core, FP32 units, threads, and bytes of shared memory."""

    capability: tuple[int, int]
    units: int
    threads: int
    shared: int
    shared_of_block: int


HOPPER = Architecture((9, 0), 128, 2048, 233472, 232448)
AMPERE = Architecture((8, 0), 64, 2048, 167936, 166912)
GA102 = Architecture((8, 6), 128, 1536, 102400, 101376)


class GPU(NamedTuple):
    """A GPU. memory: usable bytes. bandwidth: of memory, bytes/s. bfloat16, tf32: dense FLOP/s of tensor cores with float32 accumulation.
    float32: FLOP/s without tensor cores. link: bytes/s in one direction between GPUs of a host. network: between hosts, per GPU."""

    title: str
    chip: Architecture
    cores: int
    clock: float  # GHz, boost
    cache: int  # L2, bytes
    memory: int
    bandwidth: float
    bfloat16: float
    tf32: float
    float32: float
    link: float
    network: float
    source: str


# One port of 400 Gbit/s per GPU in NVIDIA's DGX H100, 200 in DGX A100; for workstations 100 Gbit/s per four GPUs are assumed.
FAST, MEDIUM, SLOW = 50e9, 25e9, 3.1e9
PCIE4 = 31.5e9  # 16 lanes
GPUS = {
    "h100": GPU(
        *("NVIDIA H100 SXM 80 GB", HOPPER, 132, 1.98, 52428800, 84942979072, 3.352e12),
        *(989e12, 494e12, 67e12, 450e9, FAST, "NVIDIA H100 Tensor Core GPU data sheet (half of its figures with sparsity)"),
    ),
    "h200": GPU(
        *("NVIDIA H200 SXM 141 GB", HOPPER, 132, 1.98, 52428800, 151397597184, 4.8e12),
        *(989e12, 494e12, 67e12, 450e9, FAST, "NVIDIA H200 Tensor Core GPU data sheet (half of its figures with sparsity)"),
    ),
    "a100": GPU(
        *("NVIDIA A100 SXM 80 GB", AMPERE, 108, 1.41, 41943040, 85100068864, 2.039e12),
        *(312e12, 156e12, 19.5e12, 300e9, MEDIUM, "NVIDIA A100 Tensor Core GPU data sheet"),
    ),
    "a100-40": GPU(
        *("NVIDIA A100 SXM 40 GB", AMPERE, 108, 1.41, 41943040, 42331013120, 1.555e12),
        *(312e12, 156e12, 19.5e12, 300e9, MEDIUM, "NVIDIA A100 Tensor Core GPU data sheet"),
    ),
    "rtx3090": GPU(
        *("NVIDIA GeForce RTX 3090 24 GB", GA102, 82, 1.695, 6291456, 25438126080, 0.936e12),
        *(71e12, 35.6e12, 35.6e12, PCIE4, SLOW, "NVIDIA Ampere GA102 GPU architecture whitepaper, appendix A; PCIe 4.0, no NVLink bridge"),
    ),
    "a6000": GPU(
        *("NVIDIA RTX A6000 48 GB", GA102, 84, 1.8, 6291456, 51041271808, 0.768e12),
        *(154.8e12, 77.4e12, 38.7e12, PCIE4, SLOW, "NVIDIA RTX A6000 data sheet and GA102 whitepaper; PCIe 4.0, no NVLink bridge"),
    ),
}


def gpu(name: str) -> GPU:
    """The GPU of a name in GPUS. Raises InputError, with the known names, for another."""
    if name not in GPUS:
        raise InputError(f"--gpu={name}: no such card{did_you_mean(name, GPUS)}; use one of {', '.join(GPUS)}")
    return GPUS[name]


def target(card: GPU) -> str:
    """The compiler's target configuration of a GPU, as a text protocol buffer (stream_executor.GpuTargetConfigProto)."""
    chip, (major, minor) = card.chip, card.chip.capability
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": chip.shared,
        "shared_memory_per_block_optin": chip.shared_of_block,
        "threads_per_core_limit": chip.threads,
        "core_count": card.cores,
        "fpus_per_core": chip.units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(card.bandwidth),
        "l2_cache_size": card.cache,
        "clock_rate_ghz": card.clock,
        "device_memory_size": card.memory,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
    }
    facts = " ".join(f"{name}: {value}" for name, value in device.items())
    return (
        f"gpu_device_info {{ {facts} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 } runtime_version { major: 12 minor: 9 patch: 0 } '
        f'device_description_str: "{card.title}"'
    )
