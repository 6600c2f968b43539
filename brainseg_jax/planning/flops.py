"""Analytic FLOPs of a function: the multiply-adds, counted as two each, of every matrix product and convolution that its result needs.

Read off the function as it was traced, before any compiler: what the network and its gradient are by definition, whatever program they
become. Where a form is chosen by platform it is the one of GPUs. What is added, normalised or activated counts nothing, as is usual.
"""

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def flops(function: Callable, *arguments: Any) -> int:
    """FLOPs of `function` at arguments, abstract or not. Raises ValueError for what cannot be counted: a loop without known length."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr, None)


def _count(jaxpr: Jaxpr, needed: Iterable[bool] | None) -> int:
    """Of what the results that are `needed` depend on; None: of all."""
    asked = [True] * len(jaxpr.outvars) if needed is None else list(needed)
    alive = {v for v, wanted in zip(jaxpr.outvars, asked, strict=True) if wanted and not isinstance(v, Literal)}
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
        ways = params["branches"]
        if eqn.invars[0] in platforms:
            ways = [ways[_for_gpus(platforms[eqn.invars[0]])]]
        return max(_count(way.jaxpr, wanted) for way in ways)
    if name == "scan":
        # What a step of the loop carries on may be needed by the next one.
        return params["length"] * _count(params["jaxpr"].jaxpr, None)
    inner = [p for value in params.values() for p in (value if isinstance(value, tuple | list) else (value,))]
    inner = [p.jaxpr if isinstance(p, ClosedJaxpr) else p for p in inner if isinstance(p, ClosedJaxpr | Jaxpr)]
    counted = sum(_count(p, wanted if len(p.outvars) == len(wanted) else None) for p in inner)
    if name == "while" and counted:
        raise ValueError("products in a loop without a known length cannot be counted")
    return counted


def _for_gpus(platforms: tuple) -> int:
    """Which of the forms a GPU takes: the one that names it, or the default."""
    named = [i for i, names in enumerate(platforms) if names and {"cuda", "gpu"} & set(names)]
    return named[0] if named else platforms.index(None)
