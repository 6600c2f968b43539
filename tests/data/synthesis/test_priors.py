"""Tables of what tissues look like: read, and refused in one line."""

import numpy as np
import pytest

from brainseg_jax.config.keys import base
from brainseg_jax.core.errors import InputError
from brainseg_jax.data.labels import read_table
from brainseg_jax.data.synthesis.generator import generator, tissues_of
from brainseg_jax.data.synthesis.priors import COLUMNS, read_prior

HEADS = read_table("head")
OF = tissues_of(HEADS).of


def written(path, *lines, header=COLUMNS):
    path.write_text("\n".join(["\t".join(header), *("\t".join(map(str, line)) for line in lines)]) + "\n")
    return path


def test_both_sides_look_as_one_line_says_and_the_rest_like_anything(tmp_path):
    prior = read_prior(written(tmp_path / "t1.tsv", (0, 0.01, 0, 0.02, 0), (2, 0.8, 0.05, 0.04, 0.01)), HEADS, OF)
    number = {s.id: n for n, s in enumerate(HEADS.structures, 1)}
    for id in (2, 41):
        np.testing.assert_array_equal(prior.means[:, OF[number[id]]], [0.8, 0.05])
        np.testing.assert_array_equal(prior.spreads[:, OF[number[id]]], [0.04, 0.01])
    np.testing.assert_array_equal(prior.means[:, OF[0]], [0.01, 0])
    assert np.isnan(prior.means[0]).sum() == OF.max() + 1 - 2


def test_its_content_and_nothing_else_makes_its_hash(tmp_path):
    of = lambda name, *lines: read_prior(written(tmp_path / name, *lines), HEADS, OF).sha256  # noqa: E731
    one = of("one.tsv", (0, 0.01, 0, 0.02, 0), (2, 0.8, 0.05, 0.04, 0.01))
    assert one == of("two.tsv", (41, 0.80, 0.05, 0.04, 0.01), (), (0, 0.01, 0, 0.02, 0))
    assert one == of("two.tsv", (2, 0.8, 0.05, 0.04, 0.01), (0, 0.01, -0.0, 0.02, 0))
    assert one != of("one.tsv", (0, 0.01, 0, 0.02, 0), (2, 0.8, 0.05, 0.04, 0.02))


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        ([(900, 0.5, 0, 0, 0)], COLUMNS, "line 2: label table head does not have 900; leave the line out"),
        ([(2, 80, 5, 4, 1)], COLUMNS, "line 2: 2, 80, 5, 4, 1; give an id and four numbers from 0 to 1"),
        ([(2, "bright", 0, 0, 0)], COLUMNS, "line 2: 2, bright, 0, 0, 0 are not all numbers; give id, mean"),
        ([(2, 0.5, 0, 0, 0), (41, 0.6, 0, 0, 0)], COLUMNS, "line 3: 41 looks otherwise than in an earlier line of its tissue"),
        ([(2, 0.5)], COLUMNS[:2], "column 'mean_sd' is missing; the first line names the columns, of id, mean"),
        ([(2, 0.5, 0, 0, 0)], (*COLUMNS[:4], "spread_std"), "column 'spread_std' is unknown (did you mean 'spread_sd'?)"),
        ([], COLUMNS, "no tissues; add at least one line below the header"),
    ],
)
def test_what_is_no_prior_is_one_line(tmp_path, lines, header, message):
    with pytest.raises(InputError) as refusal:
        read_prior(written(tmp_path / "t1.tsv", *lines, header=header), HEADS, OF)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_columns_may_stand_in_any_order_and_an_empty_file_is_one_line(tmp_path):
    turned = read_prior(written(tmp_path / "a.tsv", (0.01, 2, 0.8, 0.05, 0.04), header=(COLUMNS[4], *COLUMNS[:4])), HEADS, OF)
    assert turned.sha256 == read_prior(written(tmp_path / "b.tsv", (2, 0.8, 0.05, 0.04, 0.01)), HEADS, OF).sha256
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(InputError, match=r"empty\.tsv: the first line is empty; it names the columns, of id, mean, .*, separated by tabs"):
        read_prior(tmp_path / "empty.tsv", HEADS, OF)


def test_a_config_names_it(tmp_path):
    c = base()
    c.synth.prior.table = str(written(tmp_path / "t1.tsv", (2, 0.8, 0.05, 0.04, 0.01)))
    assert np.nanmax(generator(c, read_table("seg33")).prior.means) == 0.8
    c.synth.prior.table = str(tmp_path / "t2.tsv")
    with pytest.raises(InputError, match=r"t2\.tsv: no such file; check synth\.prior\.table"):
        generator(c, read_table("seg33"))
