"""The argument parser of commands that take no config: an error on the command line is one line."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from brainseg_jax.core.errors import InputError, did_you_mean, first_few


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are InputErrors that also name unknown flags: argparse only reports a misspelt required flag as
    missing."""

    words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's own, which keeps the words for `error`."""
        self.words = sys.argv[1:] if args is None else list(map(str, args))
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises InputError."""
        given = (word.partition("=")[0] for word in takewhile(lambda word: word != "--", self.words))
        unknown = [flag for flag in given if re.match("--?[A-Za-z]", flag) and flag not in self._option_string_actions]
        unnamed = [flag for flag in unknown if flag not in re.split(r"[\s,=]+", message)]
        also = f"; no such flag: {first_few(unnamed)}" if unnamed else ""
        hint = did_you_mean(unknown[0], self._option_string_actions) if unknown else ""
        raise InputError(f"{message}{also}{hint}; see {self.prog} --help")


def path_ending(*suffixes: str, kind: str) -> Callable[[str], Path]:
    """An argument type: the path of a `kind` of file, which ends in one of the suffixes."""

    def parse(text: str) -> Path:
        if not text.endswith(suffixes):
            raise argparse.ArgumentTypeError(f"{text} does not end in {' or '.join(suffixes)}, as {kind} does")
        return Path(text)

    return parse
