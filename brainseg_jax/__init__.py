"""brainseg_jax: pretrain once and fine-tune many times, for brain MRI, in JAX.

Axes in shapes: b batch, x y z voxels, c channels, k classes, n tokens, d width, h heads, w windows, p voxels in a patch.
Channels come last everywhere; the converters own the only transposes.
"""

import sys
from importlib import import_module

__version__ = "0.1.0"


def answer_ctrl_c() -> None:
    """Makes Ctrl-C during the imports of a command, which take seconds, one line and exit code 130."""

    def stopped(kind, error, trace):
        from brainseg_jax.core.errors import is_interrupt

        if not is_interrupt(error):
            return sys.__excepthook__(kind, error, trace)
        print("stopped", file=sys.stderr)
        raise SystemExit(130)

    sys.excepthook = stopped
    from brainseg_jax.core.errors import defer_ctrl_c

    sys.unraisablehook = defer_ctrl_c


if sys.argv[:1] == ["-m"]:  # Python is still looking for the module of `python -m`
    answer_ctrl_c()


def __dir__() -> list[str]:
    return [*globals(), "load", "predict"]


def __getattr__(name: str):
    # Lazily: JAX reads its settings when it is imported, and commands set some first.
    if name not in ("load", "predict"):
        raise AttributeError(f"module 'brainseg_jax' has no attribute {name!r}")
    return getattr(import_module(f"brainseg_jax.inference.{'network' if name == 'load' else 'prediction'}"), name)
