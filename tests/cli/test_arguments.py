"""What is answered to flags that there are not."""

import pytest

from brainseg_jax.cli.arguments import Parser
from brainseg_jax.core.errors import InputError


@pytest.fixture
def parser():
    parser = Parser("python -m command", allow_abbrev=False)
    parser.add_argument("--o", required=True)
    parser.add_argument("--size", type=int, nargs="*")
    commands = parser.add_subparsers()
    commands.add_parser("make", allow_abbrev=False).add_argument("--out", required=True)
    return parser


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "the following arguments are required: --o; see python -m command --help"),
        ("--out=x", "the following arguments are required: --o; no such flag: --out (did you mean '--o'?); see python -m command --help"),
        ("--zzz=3 -q", "the following arguments are required: --o; no such flag: --zzz, -q; see python -m command --help"),
        ("--size -1", "the following arguments are required: --o; see python -m command --help"),
        ("--o x --zzz=3", "unrecognized arguments: --zzz=3; see python -m command --help"),
        ("--o x --zzz", "unrecognized arguments: --zzz; see python -m command --help"),
        ("--o x --size y", "argument --size: invalid int value: 'y'; see python -m command --help"),
        (
            "--o x make --ou y",
            "the following arguments are required: --out; no such flag: --ou (did you mean '--out'?); see python -m command make --help",
        ),
    ],
)
def test_flags_that_there_are_not_are_named_beside_those_that_are_missing(parser, words, line):
    with pytest.raises(InputError) as refusal:
        parser.parse_args(words.split())
    assert str(refusal.value) == line


def test_what_is_right_is_taken(parser, monkeypatch):
    assert parser.parse_args(["--o", "x", "--size", "1", "2"]).size == [1, 2]
    monkeypatch.setattr("sys.argv", ["command", "--out", "x"])
    with pytest.raises(InputError, match="no such flag: --out"):
        parser.parse_args()


def test_what_stands_behind_two_dashes_is_no_flag():
    parser = Parser("command")
    parser.add_argument("--o", required=True)
    parser.add_argument("files", nargs="*")
    with pytest.raises(InputError, match="required: --o; see"):
        parser.parse_args(["--", "--out"])
