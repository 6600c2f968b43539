"""Roofline model (Williams et al. 2009): a range for the time of a step from the FLOPs and bytes of its kernels.

    time of a kernel       max(FLOPs / (share × peak FLOP/s), bytes / (share × bandwidth)) + launch
    time of a collective   bytes × way / (share × link), less the time of the kernels that it overlaps; a kernel hides one at a time
    step                   the sum over kernels, one after the other, and collectives

`way` is the fraction of the array that passes each device's link in a ring: 2 (n − 1) / n for all-reduce, 1 for a permutation, (n − 1) / n
for the others. `link` is that between GPUs of a host, or the network's for a group on several hosts. The fast end assumes the shares of
well-tuned kernels and the cheapest branches, the slow end those of small or odd shapes and the dearest branches. The shares are estimates;
nothing was timed on a GPU. Kernels other than products, convolutions and attention cost their memory traffic only, and work on the host
costs nothing.
"""

from typing import NamedTuple

from brainseg_jax.planning.gpus import GPU
from brainseg_jax.planning.hlo import Collective, Facts, Kernel


class Rates(NamedTuple):
    """Fractions of a GPU's peaks: tensor cores in products and in convolutions, memory, links; launch: seconds per kernel."""

    product: float
    convolution: float
    memory: float
    link: float
    launch: float


FAST = Rates(product=0.8, convolution=0.6, memory=0.9, link=0.8, launch=1e-6)
SLOW = Rates(product=0.3, convolution=0.12, memory=0.5, link=0.4, launch=5e-6)


def seconds(facts: Facts, card: GPU, rates: Rates, per_host: int = 0) -> float:
    """The time of a step on hosts with `per_host` devices (0: a single host). Raises ValueError if a kernel's FLOPs are unknown."""
    if facts.unknown:
        raise ValueError(f"the work of {', '.join(facts.unknown)} is not known")
    total, free = sum(of_kernel(kernel, card, rates) for kernel in facts.kernels), {}
    for collective in facts.collectives:
        exposed = of_collective(collective, card, rates, per_host)
        for name, kernel in collective.hidden.items() if collective.asynchronous else ():
            left = free.get(name, of_kernel(kernel, card, rates))
            free[name] = max(0.0, left - exposed)
            exposed = max(0.0, exposed - left)
        total += exposed
    return total


def of_kernel(kernel: Kernel, card: GPU, rates: Rates) -> float:
    """The time of a kernel in a step, for all its runs."""
    peak = {"bf16": card.bfloat16, "f16": card.bfloat16, "f32": card.tf32}.get(kernel.type, card.float32)
    share = rates.convolution if kernel.kind == "convolution" else rates.product
    return kernel.times * (max(kernel.flops / (share * peak), kernel.bytes / (rates.memory * card.bandwidth)) + rates.launch)


def of_collective(collective: Collective, card: GPU, rates: Rates, per_host: int = 0) -> float:
    """The time of a collective in a step, without regard to overlap."""
    n = len(collective.members)
    way = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(collective.kind, (n - 1) / n)
    hosts = len({device // per_host for device in collective.members}) if per_host else 1
    link = card.link if hosts == 1 else min(card.link, card.network)
    return collective.times * (collective.bytes * way / (rates.link * link) + rates.launch)
