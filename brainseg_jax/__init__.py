"""brainseg_jax: pretrain once and fine-tune many times, for brain MRI, in JAX.

Axes in shapes: b batch, x y z voxels, c channels, k classes, n tokens, d width, h heads, w windows, p voxels in a patch.
Channels come last everywhere; the converters own the only transposes.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    # Only when asked for: JAX reads its settings when it is imported, and commands set some first.
    if name == "load":
        from brainseg_jax.network import load

        return load
    if name == "predict":  # until the command of this name is imported, which then answers calls itself
        from brainseg_jax.prediction import predict

        return predict
    raise AttributeError(f"module 'brainseg_jax' has no attribute {name!r}")
