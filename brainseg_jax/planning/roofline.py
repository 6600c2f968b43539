"""A range for the time of a step, from what its kernels must compute and move at least (Williams et al. 2009).

    time of a kernel       max(FLOPs / (share × peak FLOP/s), bytes / (share × bandwidth)) + launch
    time of a collective   bytes × way / (share × link), less the time of the kernels that it overlaps; a kernel hides one at a time
    step                   the sum over kernels, one after the other, and collectives

`way` is the share of the array that goes over each device's link in a ring: 2 (n − 1) / n for all-reduce, (n − 1) / n for the others, 1 for
a permutation. `link` is that between the GPUs of a host, or the network's if those that take part are on several. The fast end takes the
shares that well-tuned kernels reach and the cheapest way through branches, the slow end those that small or odd shapes reach and the
dearest. The shares are estimates. Nothing here was timed on a GPU. Random numbers, activations and whatever else is no product are taken
to cost their memory traffic only; reading and decoding on the host cost nothing.
"""

from typing import NamedTuple

from brainseg_jax.planning.gpus import GPU
from brainseg_jax.planning.hlo import Collective, Facts, Kernel


class Rates(NamedTuple):
    """Shares of a card's peaks that are reached: tensor cores in products and in convolutions, memory, links; launch: s for each kernel."""

    product: float
    convolution: float
    memory: float
    link: float
    launch: float


FAST = Rates(product=0.8, convolution=0.6, memory=0.9, link=0.8, launch=1e-6)
SLOW = Rates(product=0.3, convolution=0.12, memory=0.5, link=0.4, launch=5e-6)


def seconds(facts: Facts, card: GPU, rates: Rates, per_host: int = 0) -> float:
    """Time of a step at these rates on hosts of so many devices; 0: all on one. ValueError if the work of a kernel is not known."""
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
    """Time of a kernel, as often as it runs."""
    peak = {"bf16": card.bfloat16, "f16": card.bfloat16, "f32": card.tf32}.get(kernel.type, card.float32)
    share = rates.convolution if kernel.kind == "convolution" else rates.product
    return kernel.times * (max(kernel.flops / (share * peak), kernel.bytes / (rates.memory * card.bandwidth)) + rates.launch)


def of_collective(collective: Collective, card: GPU, rates: Rates, per_host: int = 0) -> float:
    """Time of a collective, overlapped or not."""
    n = len(collective.members)
    way = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(collective.kind, (n - 1) / n)
    hosts = len({device // per_host for device in collective.members}) if per_host else 1
    link = card.link if hosts == 1 else min(card.link, card.network)
    return collective.times * (collective.bytes * way / (rates.link * link) + rates.launch)
