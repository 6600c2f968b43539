"""`brainseg COMMAND …`: one program for all commands; each is also `python -m brainseg_jax COMMAND`."""

import sys
from importlib import import_module

import brainseg_jax
from brainseg_jax.core.errors import InputError, did_you_mean, exit_code, exit_process

# Command: (module whose `command()` runs it, help text).
COMMANDS = {
    "predict": ("brainseg_jax.cli.predict", "segment scans, with a network of the package or your own"),
    "train": ("brainseg_jax.cli.train", "pretrain or fine-tune a network by a config"),
    "evaluate": ("brainseg_jax.cli.evaluate", "score label maps against references"),
    "prepare": ("brainseg_jax.cli.prepare", "write a manifest of scans, or standardise them before training"),
    "convert": ("converters.convert", "exchange weights with MONAI and PyTorch"),
    "plan": ("brainseg_jax.cli.plan", "estimate memory and time of a training step, without GPUs"),
    "probe": ("brainseg_jax.cli.probe", "linear probing of a pretrained encoder"),
    "parameters": ("brainseg_jax.cli.parameters", "count the parameters of a config's networks"),
}


def main() -> None:
    """Runs the command named by the first argument in this process, as if it had been called itself."""
    brainseg_jax.answer_ctrl_c()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        exit_process(exit_code(lambda: _answer(name)))
    sys.argv[:2] = [f"brainseg {name}"]
    import_module(COMMANDS[name][0]).command()


def _answer(word: str) -> int:
    if word == "--version":
        print(f"brainseg_jax {brainseg_jax.__version__}")
    elif word in ("--help", "-h"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {does}" for name, (_, does) in COMMANDS.items()]
        print("\n".join(["usage: brainseg COMMAND ...", "", *lines, "", "brainseg COMMAND --help says more of one; brainseg --version"]))
    else:
        raise InputError(f"there is no command {word!r}{did_you_mean(word, COMMANDS)}; see brainseg --help")
    return 0
