"""One name for all commands: each is found by its word, answers for itself, and what is no command is one line."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import brainseg_jax
from brainseg_jax.cli import brainseg
from brainseg_jax.cli.brainseg import COMMANDS

ROOT = Path(__file__).parents[2]


def run(*words):
    return subprocess.run([sys.executable, "-m", "brainseg_jax", *words], cwd=ROOT, capture_output=True, text=True)


def test_it_is_installed_under_its_name():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {"brainseg": "brainseg_jax.cli.brainseg:main"}


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_names_every_command_and_what_it_does(words):
    done = run(*words)
    assert done.returncode == 0
    for name, (_, does) in COMMANDS.items():
        assert any(line.split() == [name, *does.split()] for line in done.stdout.splitlines()), name


def test_version():
    assert run("--version").stdout == f"brainseg_jax {brainseg_jax.__version__}\n"


@pytest.mark.parametrize(("word", "hint"), [("predikt", " (did you mean 'predict'?)"), ("segment-all-of-it", "")])
def test_another_word_is_one_line(word, hint):
    done = run(word)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: there is no command {word!r}{hint}; see brainseg --help\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_gets_the_words_after_its_name(monkeypatch, name):
    module, seen = import_module(COMMANDS[name][0]), []
    monkeypatch.setattr(module, "command", lambda: seen.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/brainseg", name, "--i", "x"])
    brainseg.main()
    assert seen == [[f"brainseg {name}", "--i", "x"]]


def test_a_commands_errors_are_its_own():
    done = run("predict", "--zzz")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.endswith("see brainseg predict --help\n")
