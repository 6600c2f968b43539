"""Pictures of scans made from label maps, for the documents: 64 as the recipe `any` makes them in training, and each change alone.

    python scripts/gallery.py --out docs/made_scans

Writes OUT.png and OUT_parts.png. The label maps are those of the sample cohort, the MNI average deformed, whose face may be shown. With
`--manifest` they are a manifest's, rows of labels only or scans with labels, training rows all the same: heads of real people have faces,
and do not belong in a document. Of the draws of a change the one is shown that changes its slice most.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot
from ml_collections import ConfigDict

from brainseg_jax.cli.arguments import Parser
from brainseg_jax.config.resolve import of_file
from brainseg_jax.core import progress
from brainseg_jax.core.errors import exit_code
from brainseg_jax.core.files import atomic_write
from brainseg_jax.data import cache, dataset, labels
from brainseg_jax.data.augment.prepare import prepare_train
from brainseg_jax.data.synthesis.generator import generator_of
from brainseg_jax.qc import images

CONFIG = Path(__file__).parents[1] / "configs" / "finetune_unet.py"
SIDE, DRAWS, LEVELS = 8, 8, 32  # scans along a side of the picture, draws of each change, shades of grey
# Every change: its title, the plane that shows it (axis of "RAS"), keys that differ from `plain` without it and with it.
PARTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "painted in random means": (2, {"real": True}, {"synth.spread": 0.0}),
    "texture": (2, {"synth.spread": 0.0}, {"synth.spread": 0.1, "synth.texture.share": 1.0}),
    "lesions": (2, {}, {"synth.lesions.chance": 1.0}),
    "skull stripped": (1, {}, {"synth.strip.chance": 1.0}),
    "face removed": (0, {}, {"synth.face.chance": 1.0}),
    "noise of the air": (1, {}, {"synth.air_noise.chance": 1.0}),
    "contrast curve": (2, {}, {"augment.contrast.chance": 1.0}),
    "bias field": (2, {}, {"augment.bias.chance": 1.0}),
    "blur": (1, {}, {"augment.blur.chance": 1.0}),
    "thick slices": (1, {}, {"augment.low_resolution.chance": 1.0}),
    "noise": (2, {}, {"augment.noise.chance": 1.0}),
    "turned, scaled, moved": (1, {}, {"augment.affine.chance": 1.0}),
    "bent": (2, {}, {"augment.elastic.chance": 1.0}),
    "cut": (0, {}, {"augment.field_of_view.chance": 1.0}),
}

Volume = dict[str, np.ndarray]
Made = Callable[[int, Volume], np.ndarray]  # the scan that a number gives of a volume


def main() -> int:
    """Draws both pictures. Returns the exit code."""
    parser = Parser("python scripts/gallery.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", default="", help="the label maps, with splits; by default the sample cohort's")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/made_scans"), help="where to write, without suffix (%(default)s)")
    return exit_code(lambda: draw(parser.parse_args()))


def draw(options: argparse.Namespace) -> int:
    """Makes the label maps and both pictures."""
    config = of_file(f"{CONFIG}:thirtythree,any")
    config.data.manifest = options.manifest
    config.data.subjects = 6
    target, head = labels.read_table(config.data.labels), labels.read_table(labels.HEAD)
    ready = dataset.prepare(config.data, target, print, progress.progress, heads=head)
    volumes = [cache.load(entry.file) for entry in ready.train]
    save(options.out.with_suffix(".png"), gallery(made_by(config, options.seed), volumes))
    save(options.out.with_name(f"{options.out.name}_parts.png"), parts(config, options.seed, volumes))
    return 0


def made_by(config: ConfigDict, seed: int) -> Made:
    """What the config makes and augments of a volume's labels in training, or, where its share is 0, of its image."""
    target = labels.read_table(config.data.labels)
    prepare = jax.jit(prepare_train(config, labels.swap(target), generator_of(config, target)))

    def made(number: int, volume: Volume) -> np.ndarray:
        batch = {name: jnp.asarray(part[None]) for name, part in volume.items()} | {"labels_only": jnp.array([True])}
        return np.asarray(prepare(jax.random.fold_in(jax.random.key(seed), number), batch)["image"][0, ..., 0])

    return made


def gallery(made: Made, volumes: list[Volume]) -> np.ndarray:
    """SIDE² scans as tiles, a plane after the other."""
    show = progress.progress("making scans")
    tiles = []
    for i in range(SIDE**2):
        tiles.append(np.pad(plane(made(i, volumes[i % len(volumes)]), (i + i // SIDE) % 3), 1))
        show(i + 1, SIDE**2)
    return np.block([tiles[row : row + SIDE] for row in range(0, SIDE**2, SIDE)])


def parts(config: ConfigDict, seed: int, volumes: list[Volume]) -> np.ndarray:
    """Each change beside the same scan without it, with its name."""
    figure, axes = pyplot.subplots(-(-len(PARTS) // 2), 4, figsize=(6.4, 12), dpi=100, facecolor="black", squeeze=False)
    show = progress.progress("drawing changes")
    for n, (name, (axis, without, changes)) in enumerate(PARTS.items()):
        makers = [made_by(changed(config, keys), seed) for keys in (without, without | changes | {"real": False})]
        pairs = [[plane(made(k, volumes[k % len(volumes)]), axis) for made in makers] for k in range(DRAWS)]
        most = max(pairs, key=lambda pair: np.abs(pair[0] - pair[1]).mean())
        for panel, image, title in zip(
            axes[n // 2, n % 2 * 2 :], most, ("the image" if "real" in without else "without", name), strict=False
        ):
            panel.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            panel.set_title(title, color="white", fontsize=8, pad=2)
        show(n + 1, len(PARTS))
    for panel in axes.flat:
        panel.axis("off")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.98, 0.03, 0.1)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., 0] / 255


def changed(config: ConfigDict, keys: dict[str, Any]) -> ConfigDict:
    """The config with no change by chance but what these keys say, all scans made; with `real` none."""
    config = config.copy_and_resolve_references()
    for name in ("synth", "augment"):
        for group in config[name].values():
            if isinstance(group, ConfigDict):
                group.update({key: 0.0 for key in ("chance", "sides", "others") if key in group})
    config.augment.chance, config.synth.share = 0.0, 0.0 if keys.get("real") else 1.0
    config.update_from_flattened_dict({key: value for key, value in keys.items() if key != "real"})
    return config


def plane(scan: np.ndarray, axis: int) -> np.ndarray:
    """The middle slice across an axis of "RAS": the front or the top upwards."""
    return np.rot90(np.take(scan, scan.shape[axis] // 2, axis))


def save(file: Path, image: np.ndarray) -> None:
    """A picture of values from 0 to 1 as PNG in LEVELS shades of grey."""
    shades = np.linspace(0, 255, LEVELS).round().astype(np.uint8)
    palette = np.column_stack([shades, shades, shades, np.full_like(shades, 255)])
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as part:
        part.write_bytes(images.png(np.rint(np.clip(image, 0, 1) * (LEVELS - 1)).astype(np.uint8), palette))
    print(f"{file}: written, {file.stat().st_size // 1000} kB")


if __name__ == "__main__":
    sys.exit(main())
