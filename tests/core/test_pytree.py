"""Paths of leaves, and rules by path that fail loudly."""

import numpy as np
import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.core.pytree import by_pattern, count, map_paths, paths

TREE = {"encoder": {"blocks": {"qkv": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}}, "list": [np.zeros(1), np.zeros(())]}


def test_paths_are_names_joined_by_slashes():
    assert list(paths(TREE)) == ["encoder/blocks/qkv/bias", "encoder/blocks/qkv/kernel", "list/0", "list/1"]


def test_map_paths_keeps_the_tree():
    assert map_paths(lambda path, leaf: (path[-4:], leaf.shape), {"a": {"kernel": np.zeros(2)}}) == {"a": {"kernel": ("rnel", (2,))}}


def test_count():
    assert count(TREE) == 6 + 3 + 1 + 1


def test_the_first_rule_that_matches_the_whole_path_decides():
    chosen = by_pattern([(r".*bias", 1), (r"encoder/.*", 2)], TREE, 0, "rules")
    assert paths(chosen) == {"encoder/blocks/qkv/bias": 1, "encoder/blocks/qkv/kernel": 2, "list/0": 0, "list/1": 0}


@pytest.mark.parametrize("pattern", ["encoder", "kernel", "qkv/kernel", ".*weight"])
def test_a_rule_that_matches_nothing_is_refused_by_key_and_pattern(pattern):
    with pytest.raises(InputError, match=r"optim\.lr_multipliers.*" + pattern.replace("*", r"\*").replace(".", r"\.")):
        by_pattern([(pattern, 0.0)], TREE, 1.0, "optim.lr_multipliers")
