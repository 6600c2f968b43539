"""brainseg_jax: pretrain once and fine-tune many times, for brain MRI, in JAX.

Axes in shapes: b batch, x y z voxels, c channels, k classes, n tokens, d width, h heads, w windows, p voxels in a patch.
Channels come last everywhere; the converters own the only transposes.
"""

import sys

__version__ = "0.1.0"


def answer_ctrl_c() -> None:
    """From here on Ctrl-C before a command can answer it is one line, too, and 130: what commands import takes seconds."""

    def stopped(kind, error, trace):
        from brainseg_jax.core.errors import is_interrupt

        if not is_interrupt(error):
            return sys.__excepthook__(kind, error, trace)
        print("stopped", file=sys.stderr)
        raise SystemExit(130)

    sys.excepthook = stopped
    from brainseg_jax.core.errors import defer_ctrl_c

    sys.unraisablehook = defer_ctrl_c


if sys.argv[:1] == ["-m"]:  # while Python looks for the command of `python -m`
    answer_ctrl_c()


def __getattr__(name: str):
    # Only when asked for: JAX reads its settings when it is imported, and commands set some first.
    if name == "load":
        from brainseg_jax.inference.network import load

        return load
    if name == "predict":  # until the command of this name is imported, which then answers calls itself
        from brainseg_jax.inference.prediction import predict

        return predict
    raise AttributeError(f"module 'brainseg_jax' has no attribute {name!r}")
