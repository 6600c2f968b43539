"""Pictures of a network's input and output: slices in three planes, as PNG. Needs matplotlib (extra `view`)."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from brainseg_jax.core.files import atomic_write

# Axis, name, and position of the slice as a fraction from left, back or bottom.
Plane = tuple[int, str, float]
PLANES: tuple[Plane, ...] = ((0, "sagittal", 0.5), (1, "coronal", 0.5), (2, "axial", 0.5))


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def to_ras(volume: Shaped[np.ndarray, "x y z *rgb"], codes: str) -> Shaped[np.ndarray, "x2 y2 z2 *rgb"]:
    """A volume with orientation `codes` (e.g. "RSP"), reoriented to RAS."""
    axes = ras_axes(codes)
    return np.flip(np.moveaxis(volume, axes, (0, 1, 2)), [i for i, axis in enumerate(axes) if codes[axis] in "LPI"])


def ras_axes(codes: str) -> list[int]:
    """The axes of an array with orientation `codes` that run right–left, anterior–posterior and superior–inferior."""
    return [next(i for i, code in enumerate(codes) if code in pair) for pair in ("RL", "AP", "SI")]


def slices(file: Path, columns: dict[str, Float[np.ndarray, "x y z *rgb"]], title: str, planes: Sequence[Plane] = PLANES) -> None:
    """Writes a PNG with a row per plane and a column per volume ([x y z], or [x y z 3] in colour; RAS, in [0, 1]); NaN is drawn blue."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    colours = matplotlib.colormaps["gray"].with_extremes(bad="#22405f")
    size = (2.6 * len(columns), 2.6 * len(planes) + 0.5)
    figure, axes = pyplot.subplots(len(planes), len(columns), figsize=size, squeeze=False, layout="constrained")
    for row, (axis, plane, where) in enumerate(planes):
        for column, (name, volume) in enumerate(columns.items()):
            panel = axes[row, column]
            image = np.take(volume, int(where * volume.shape[axis]), axis).swapaxes(0, 1)
            panel.imshow(image, origin="lower", cmap=colours, vmin=0, vmax=1, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            if row == 0:
                panel.set_title(name, fontsize=9)
            if column == 0:
                panel.set_ylabel(plane, fontsize=9)
    figure.suptitle(title, fontsize=10)
    try:
        with atomic_write(file) as part:
            figure.savefig(part, dpi=110, format="png")
    finally:
        pyplot.close(figure)
