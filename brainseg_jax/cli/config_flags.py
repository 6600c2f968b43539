"""What commands with a config share: `--config` and `--devices`, one-line user errors, and suggestions for mistyped flags."""

import re
import sys
from collections.abc import Callable

from absl import app, flags
from ml_collections import config_flags

from brainseg_jax.config.resolve import RENAMED, of_file, unknown_key
from brainseg_jax.core.errors import InputError, exit_code, exit_process

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, e.g. configs/pretrain_vit.py.", lock_config=True)
flags.FLAGS["config"].parser.parse = lambda name: of_file(name).lock()  # its errors are one line
DEVICES = flags.DEFINE_integer("devices", 0, "The number of devices of all hosts; 0: any number for training, one for planning.")


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a command: a user error is one line on stderr and exit code 2, Ctrl-C one line and 130."""
    stopped = "stopped; the same command starts again, with what it has in its cache"
    exit_process(exit_code(lambda: app.run(main, flags_parser=lambda argv: _parse(argv, main.__module__)), stopped))


def check_given(argv: list[str]) -> None:
    """Raises InputError for positional arguments and for a missing --config."""
    if len(argv) > 1:
        raise InputError(f"{argv[1]!r} is an unrecognised argument; values are given as --config.KEY=VALUE")
    if CONFIG.value is None:
        raise InputError("--config is missing; e.g. --config=configs/pretrain_vit.py")


def _parse(argv: list[str], module: str) -> list[str]:
    given = [word.lstrip("-").partition("=") for word in argv if word.startswith("-")]
    for flag, equals, value in given:
        if flag.startswith("config.") and (fault := unknown_key(flag.removeprefix("config."))):
            raise InputError(f"--{flag}: {fault}")
        if flag == "config" and equals and not value:
            raise InputError("--config is empty; e.g. --config=configs/pretrain_vit.py")
    if any(flag in ("help", "h") for flag, *_ in given):
        print(sys.modules[module].__doc__.strip(), flags.FLAGS.module_help(module).strip().partition("\n")[2], sep="\n\n")
        raise SystemExit(0)
    if [flag for flag, *_ in given].count("config") > 1:
        raise InputError("--config is given twice; give one experiment")
    argv = [re.sub(r"(?<=^--config\.)[\w.]+", lambda match: RENAMED.get(match[0], match[0]), word) for word in argv]
    sys.argv[:] = argv  # where ml_collections looks for the values of keys
    try:
        return flags.FLAGS(argv)
    except (TypeError, ValueError, flags.Error) as error:
        message = " ".join(str(error).split())
        # For a value that is no number the message names the value only, not the flag.
        prefix = next((f"--{flag}: " for flag, _, value in given if value and message.endswith(repr(value))), "")
        key = next((f"; did you mean --config.{flag}?" for flag, *_ in given if f"'{flag}'" in message and not unknown_key(flag)), "")
        raise InputError(prefix + message + key) from None
