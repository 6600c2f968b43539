"""The engine by hand, and promises that every table keeps: what is written is read again, bit for bit."""

import re

import numpy as np
import pytest

from brainseg_jax.core.errors import InputError
from converters import rules, swin_unetr, unetr
from converters.rules import Dead, Row, numbers, place, table, their_key, to_ours, to_theirs
from converters.source import DIALECTS

SIDES = {"n": 6, "m": 5, "d": 4, "out": 4, "in": 3, "x": 3, "y": 3, "z": 3, "p": 2}
ROWS = table("""
    a.{s}.weight    a{s}/kernel     linear
    b.{i}.bias      b/bias[i]       vector
    old.{i}.bias    b/bias[i]       vector
""")


def example(rng, layout):
    """A tensor of theirs that fits a layout, of 2 channels where it cuts patches."""
    sides = SIDES | {"in": 2} if layout.startswith("patch") else SIDES
    return rng.normal(size=[int(side) if side.isdigit() else sides[side] for side in rules.LAYOUTS[layout].axes.split()])


@pytest.mark.parametrize("layout", rules.LAYOUTS)
def test_layouts_are_undone_bit_by_bit(rng, layout):
    tensor = example(rng, layout)
    read, write = rules.LAYOUTS[layout].read, rules.LAYOUTS[layout].write
    np.testing.assert_array_equal(write(read(tensor), 2), tensor)


def test_layouts_mean_what_they_say(rng):
    up, patch = example(rng, "up"), example(rng, "patch")
    x, y, z, i, o = 1, 0, 1, 2, 3
    assert rules.LAYOUTS["up"].read(up)[i, ((x * 2 + y) * 2 + z) * 4 + o] == up[i, o, x, y, z]
    i = 1
    assert rules.LAYOUTS["patch"].read(patch)[((x * 2 + y) * 2 + z) * 2 + i, o] == patch[o, i, x, y, z]
    conv = example(rng, "conv")
    assert rules.LAYOUTS["conv"].read(conv)[x, y, z, i, o] == conv[o, i, x, y, z]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_every_row_is_read_and_the_first_of_a_path_written(rng, dialect):
    values = {"i": "0", "n": "2", "s": "3", "b": "1"}
    written = {}
    for row in dialect.rows:
        key, tensor = row.theirs.format(**values), example(rng, row.layout)
        leaves, account = to_ours(dialect.rows, dialect.dead, {key: tensor})
        (path,) = leaves
        assert account.used == {key: path}
        assert path.split("/")[0] in dialect.parts
        ((back, again),) = to_theirs(dialect.rows, leaves, 2).items()
        assert written.setdefault(path, back) == back
        if back == key:
            np.testing.assert_array_equal(again, tensor)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_tables_have_a_place_for_marks_and_dead_keys_have_reasons(dialect):
    assert [mark for mark in dialect.marks if place(dialect.rows, mark) is None and mark != "out.conv.conv.weight"] == []
    assert all(d.why and (d.make is None or d.beside) for d in dialect.dead)


def test_stacks_and_other_spellings():
    tensors = {"b.1.bias": np.full(2, 1.0), "old.0.bias": np.zeros(2), "a.7.weight": np.arange(6.0).reshape(3, 2)}
    leaves, _ = to_ours(ROWS, (), tensors)
    assert {path: leaf.tolist() for path, leaf in leaves.items()} == {"b/bias": [[0, 0], [1, 1]], "a7/kernel": [[0, 2, 4], [1, 3, 5]]}
    assert sorted(to_theirs(ROWS, leaves, 1)) == ["a.7.weight", "b.0.bias", "b.1.bias"]
    assert their_key(ROWS, "b/bias") == "b.*.bias"


def test_every_key_is_accounted_for():
    tensors = {"a.0.weight": np.zeros((1, 1)), "index": np.zeros(1), "surprise": np.zeros(1)}
    _, account = to_ours(ROWS, (Dead("ind*", "a constant"),), tensors)
    assert account == ({"a.0.weight": "a0/kernel"}, {"index": "a constant"}, ("surprise",))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"b.0.bias": np.zeros(1), "b.2.bias": np.zeros(1)}, "b.1.bias is missing"),
        ({"b.999999999999.bias": np.zeros(1)}, "b.0.bias is missing"),
        ({"b.0.bias": np.zeros(1), "old.0.bias": np.zeros(1)}, "b.0.bias and old.0.bias are two names"),
        ({"b.0.bias": np.zeros(1), "b.1.bias": np.zeros(2)}, "b.1.bias has another shape"),
        ({"a.0.weight": np.zeros((1, 2, 3))}, "a.0.weight has shape (1, 2, 3) where [out in]"),
    ],
)
def test_what_does_not_fit_is_refused(tensors, says):
    with pytest.raises(InputError, match=re.escape(says)):
        to_ours(ROWS, (), tensors)


def test_a_leaf_without_a_place_is_refused():
    with pytest.raises(InputError, match="c/kernel has no place"):
        to_theirs(ROWS, {"c/kernel": np.zeros((1, 1))}, 1)


def test_numbers_are_the_same_on_both_sides():
    assert numbers("x.{i}.y.{i}", "x.12.y.12") == {"i": "12"}
    assert numbers("x.{i}.y.{i}", "x.12.y.13") is None
    assert numbers("x.{i}", "xa1") is None
    assert Row("x.{i}", "y", "vector") == table("x.{i} y vector")[0]


def test_releases():
    assert rules.release("1.5.2") == "1.5"
    with pytest.raises(InputError, match=r"known are 0\.8 to 1\.6"):
        rules.release("2.0")


def test_dead_keys_tell_the_release():
    norm, cross = "vit.blocks.0.norm_cross_attn.weight", "vit.blocks.0.cross_attn.to_q.weight"
    assert rules.written_by(unetr.UNETR, ["vit.norm.weight"]) == "0.9 to 1.3"
    written = {version: rules.synthesise(unetr.UNETR.dead, _minimal(), version) for version in rules.MONAI}
    assert (norm in written["1.6"], cross in written["1.6"], cross in written["1.5"], norm in written["1.3"]) == (True, False, True, False)
    for versions, said in ((("0.8",), "0.8"), (("0.9", "1.3"), "0.9 to 1.3"), (("1.4", "1.5"), "1.4 to 1.5"), (("1.6",), "1.6")):
        assert {rules.written_by(unetr.UNETR, _minimal() | written[version]) for version in versions} == {said}
    assert rules.written_by(swin_unetr.SWIN_UNETR, []) == "0.9 to 1.6"


def _minimal():
    """One tensor beside which each dead one of MONAI's UNETR stands."""
    sides = {d.beside: 5 if "conv1" in d.beside else 2 if "out_proj.weight" in d.beside else 1 for d in unetr.DEAD}
    return {key.format(i=0, n=2): np.ones((2,) * n) for key, n in sides.items()}


@pytest.mark.parametrize(("old", "new"), [("merging", "mergingv2"), ("mergingv2", "merging")])
def test_octants_change_places_and_come_back(rng, old, new):
    leaves = {
        "encoder/layers1/downsample/norm/scale": rng.normal(size=16),
        "encoder/layers1/downsample/reduction/kernel": rng.normal(size=(16, 4)),
    }
    moved = swin_unetr.reorder(leaves, old, new)
    # 110 stands fifth in one order and seventh in the other.
    at = {"merging": 4, "mergingv2": 6}
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(moved[path][2 * at[new] : 2 * at[new] + 2], leaf[2 * at[old] : 2 * at[old] + 2])
        np.testing.assert_array_equal(swin_unetr.reorder(moved, new, old)[path], leaf)


@pytest.mark.parametrize(
    ("ours", "monai", "wanted", "reason"),
    [
        (
            "legacy",
            "1.3",
            "mergingv2",
            "takes two of eight neighbouring voxels twice and leaves two out, so that no other order computes the same",
        ),
        ("merging", "1.3", "legacy", "leaves out two of eight neighbouring voxels, and this was trained with all of them, merging"),
        ("legacy", "1.5", "", "MONAI 1.5 has no such order since it was changed in 1.5, and would give wrong outputs; use --monai 1.4"),
    ],
)
def test_an_order_of_merging_that_computes_something_else_is_not_written(ours, monai, wanted, reason):
    with pytest.raises(InputError, match=reason):
        swin_unetr.exported_merging(ours, monai, wanted)
