"""brainseg_jax: pretrain once and fine-tune many times, for brain MRI, in JAX.

Axes in shapes: b batch, x y z voxels, c channels, k classes, n tokens, d width, h heads, w windows, p voxels in a patch.
Channels come last everywhere; the converters own the only transposes.
"""

__version__ = "0.1.0"
