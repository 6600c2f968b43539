"""Parameters by their path, e.g. "encoder/blocks/attn/qkv/kernel"; rules for parameters are pairs (regular expression of paths, value)."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from brainseg_jax.core.errors import InputError


def path_of(keys: Sequence[Any]) -> str:
    """The slash-separated path of a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def paths(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, in the tree's order."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: dict[str, Any]) -> dict[str, Any]:
    """The nested dictionary of leaves given by path: the inverse of `paths` for trees of dictionaries."""
    root: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return root


def mismatches(found: Any, wanted: Any) -> list[str]:
    """A line for each missing, surplus or differently shaped leaf: "norm/scale is (4,) where (3,) is wanted"."""
    old, new = ({name: tuple(leaf.shape) for name, leaf in paths(tree).items()} for tree in (found, wanted))
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return [f"{name} is {old.get(name, 'missing')} where {new.get(name, 'missing')} is wanted" for name in names]


def map_paths(f: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree of f(path, leaf)."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: f(path_of(keys), leaf), tree)


def by_pattern(rules: Sequence[tuple[str, Any]], tree: Any, default: Any, key: str) -> Any:
    """The tree of each leaf's value: that of the first rule whose regular expression matches the whole path, or `default`.

    Raises InputError, naming the config key of the rules, for an expression that matches no leaf: likely a typing error.
    """
    unused = {pattern for pattern, _ in rules}

    def first_match(path: str, _: Any) -> Any:
        for pattern, value in rules:
            if re.fullmatch(pattern, path):
                unused.discard(pattern)
                return value
        return default

    values = map_paths(first_match, tree)
    if unused:
        raise InputError(f"{key}: no parameter matches {sorted(unused)[0]!r}; paths look like {next(iter(paths(tree)))}")
    return values


def count(tree: Any) -> int:
    """The number of elements in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
