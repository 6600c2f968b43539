"""`python -m brainseg_jax.main --config=configs/pretrain_vit.py`: flags, process start-up, then `train`.

`--config=FILE.py:VARIANT` picks a variant, `--config.KEY=VALUE` changes a value, `--workdir` names the run folder. The same command
again goes on where it stopped.
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from brainseg_jax import runtime
from brainseg_jax.config import unknown, with_sources
from brainseg_jax.errors import InputError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, e.g. configs/pretrain_vit.py.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", "", "The run folder; by default runs/ and the config's name.")


def main(argv: list[str]) -> None:
    """Starts JAX and trains what the flags say."""
    if len(argv) > 1:
        raise InputError(f"{argv[1]!r} is no flag; values are given as --config.KEY=VALUE")
    if CONFIG.value is None:
        raise InputError("--config is missing; e.g. --config=configs/pretrain_vit.py")
    runtime.keep_compiled_programs()
    # Imported after what has to be set before JAX is; and so a mistyped flag is answered at once.
    import jax

    from brainseg_jax.train import train

    logging.set_verbosity(logging.WARNING)  # Orbax tells all it does
    config = CONFIG.value
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    resolved = with_sources(config, set(config_flags.get_override_values(flags.FLAGS["config"])), path)
    if config.dtype == "auto":
        config.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        resolved["dtype"]["value"] = config.dtype
    name = Path(path).stem + (f"_{variant}" if variant else "")
    train(config, resolved, Path(WORKDIR.value or f"runs/{name}"))


def run() -> None:
    """The command: what the user can mend is one line on stderr and exit code 2."""
    runtime.with_huge_pages()
    try:
        app.run(main, flags_parser=parse)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}; check the place and its permissions", file=sys.stderr)
        sys.exit(2)


def parse(argv: list[str]) -> list[str]:
    """What absl makes of the command line; InputError, naming the flag, for what it cannot use."""
    for i, word in enumerate(argv):
        flag, equals, value = word.lstrip("-").partition("=")
        value = value if equals else "".join(argv[i + 1 : i + 2])
        file = Path(value.partition(":")[0])
        if flag == "config" and (file.suffix != ".py" or not file.is_file()):
            raise InputError(f"--config={value}: no such config; it is a Python file, e.g. --config=configs/pretrain_vit.py")
        if flag.startswith("config.") and (fault := unknown(flag.removeprefix("config."))):
            raise InputError(f"--{flag}: {fault}")
    try:
        return flags.FLAGS(argv)
    except (TypeError, ValueError, flags.Error) as error:
        raise InputError(" ".join(str(error).split())) from None


if __name__ == "__main__":
    run()
