"""Analytic FLOPs of a function: two per multiply-add of every matrix product and convolution that its result needs.

They are counted on the traced function, before compilation, so they are independent of the program it becomes. Where the implementation
depends on the platform, that of GPUs counts. As usual, additions, normalisations and activations are not counted.
"""

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def flops(function: Callable, *arguments: Any) -> int:
    """FLOPs of `function` for concrete or abstract arguments. Raises ValueError for a loop of unknown length."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr, None)


def _count(jaxpr: Jaxpr, needed: Iterable[bool] | None) -> int:
    """FLOPs of the equations that the `needed` results depend on; None: all results."""
    needed = [True] * len(jaxpr.outvars) if needed is None else list(needed)
    alive = {v for v, wanted in zip(jaxpr.outvars, needed, strict=True) if wanted and not isinstance(v, Literal)}
    platforms = {eqn.outvars[0]: eqn.params["platforms"] for eqn in jaxpr.eqns if eqn.primitive.name == "platform_index"}
    total = 0
    for eqn in reversed(jaxpr.eqns):
        wanted = [v in alive for v in eqn.outvars]
        if any(wanted) or eqn.effects:
            total += _of(eqn, wanted, platforms)
            alive |= {v for v in eqn.invars if not isinstance(v, Literal)}
    return total


def _of(eqn: Any, wanted: list[bool], platforms: dict[Any, tuple]) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * eqn.outvars[0].aval.size * prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, out = eqn.invars[1].aval, params["dimension_numbers"].rhs_spec[0]
        return 2 * eqn.outvars[0].aval.size * kernel.size // kernel.shape[out] // params["batch_group_count"]
    if name == "cond":
        branches = params["branches"]
        if eqn.invars[0] in platforms:
            branches = [branches[_for_gpus(platforms[eqn.invars[0]])]]
        return max(_count(branch.jaxpr, wanted) for branch in branches)
    if name == "scan":
        # A carried value may be needed by the next step of the loop.
        return params["length"] * _count(params["jaxpr"].jaxpr, None)
    inner = [p for value in params.values() for p in (value if isinstance(value, tuple | list) else (value,))]
    inner = [p.jaxpr if isinstance(p, ClosedJaxpr) else p for p in inner if isinstance(p, ClosedJaxpr | Jaxpr)]
    counted = sum(_count(p, wanted if len(p.outvars) == len(wanted) else None) for p in inner)
    if name == "while" and counted:
        raise ValueError("products in a loop without a known length cannot be counted")
    return counted


def _for_gpus(platforms: tuple) -> int:
    """The index of the branch for GPUs: the one that names them, or the default."""
    named = [i for i, names in enumerate(platforms) if names and {"cuda", "gpu"} & set(names)]
    return named[0] if named else platforms.index(None)
