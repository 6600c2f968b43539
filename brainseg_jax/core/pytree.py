"""A parameter is addressed by its path, "encoder/blocks/attn/qkv/kernel"; everything that treats leaves differently is (pattern, value)."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from brainseg_jax.core.errors import InputError


def path_of(keys: Sequence[Any]) -> str:
    """A key path of `jax.tree_util` as text, its parts joined by slashes."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def paths(tree: Any) -> dict[str, Any]:
    """Every leaf under its path, in the tree's order."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: dict[str, Any]) -> dict[str, Any]:
    """The nested dictionary of leaves by path: the inverse of `paths` for trees of dictionaries."""
    root: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return root


def mismatches(found: Any, wanted: Any) -> list[str]:
    """On each leaf of either tree that is missing, surplus or of another shape: "norm/scale is (4,) where (3,) is wanted"."""
    there, here = ({name: tuple(leaf.shape) for name, leaf in paths(tree).items()} for tree in (found, wanted))
    names = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    return [f"{name} is {there.get(name, 'missing')} where {here.get(name, 'missing')} is wanted" for name in names]


def map_paths(f: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree with f(path, leaf) in place of each leaf."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: f(path_of(keys), leaf), tree)


def by_pattern(rules: Sequence[tuple[str, Any]], tree: Any, default: Any, key: str) -> Any:
    """For each leaf the value of the first rule whose regular expression matches its whole path.

    Raises InputError, naming the config key the rules came from, for an expression that matches no leaf: it is a typing error.
    """
    unused = {pattern for pattern, _ in rules}

    def value(path: str, _: Any) -> Any:
        for pattern, chosen in rules:
            if re.fullmatch(pattern, path):
                unused.discard(pattern)
                return chosen
        return default

    chosen = map_paths(value, tree)
    if unused:
        raise InputError(f"{key}: no parameter matches {sorted(unused)[0]!r}; paths look like {next(iter(paths(tree)))}")
    return chosen


def count(tree: Any) -> int:
    """Numbers in all leaves together."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
