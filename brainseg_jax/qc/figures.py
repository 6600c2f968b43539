"""Pictures for people who look at what a network does: slices in three planes, as PNG. Needs matplotlib (extra `view`)."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from brainseg_jax.core.files import atomic_write

# Axis, name, and where it is cut as a share of the way from left, back or bottom.
Plane = tuple[int, str, float]
PLANES: tuple[Plane, ...] = ((0, "sagittal", 0.5), (1, "coronal", 0.5), (2, "axial", 0.5))


def available() -> bool:
    """Whether pictures can be made here."""
    return importlib.util.find_spec("matplotlib") is not None


def to_ras(volume: Shaped[np.ndarray, "x y z *rgb"], codes: str) -> Shaped[np.ndarray, "x2 y2 z2 *rgb"]:
    """A volume whose axes point to `codes` (e.g. "RSP"), turned so that they point right, anterior, superior."""
    axes = ras_axes(codes)
    return np.flip(np.moveaxis(volume, axes, (0, 1, 2)), [i for i, axis in enumerate(axes) if codes[axis] in "LPI"])


def ras_axes(codes: str) -> list[int]:
    """Which axis of an array whose axes point to `codes` runs between right and left, anterior and posterior, superior and inferior."""
    return [next(i for i, code in enumerate(codes) if code in pair) for pair in ("RL", "AP", "SI")]


def slices(file: Path, columns: dict[str, Float[np.ndarray, "x y z *rgb"]], title: str, planes: Sequence[Plane] = PLANES) -> None:
    """Writes a PNG: a row per plane, a column per named volume [x y z], or in colours [x y z 3], in RAS and [0, 1]; NaN is drawn blue."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    colours = matplotlib.colormaps["gray"].with_extremes(bad="#22405f")
    figure, axes = pyplot.subplots(
        len(planes), len(columns), figsize=(2.6 * len(columns), 2.6 * len(planes) + 0.5), squeeze=False, layout="constrained"
    )
    for row, (axis, plane, where) in enumerate(planes):
        for column, (name, volume) in enumerate(columns.items()):
            panel = axes[row, column]
            cut = np.take(volume, int(where * volume.shape[axis]), axis)
            panel.imshow(cut.swapaxes(0, 1), origin="lower", cmap=colours, vmin=0, vmax=1, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
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
