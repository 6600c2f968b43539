"""`brainseg parameters --config=configs/pretrain_vit.py`: what the config's networks are made of, and the paper's Table I.

Nothing is trained and no weight is made: parameters are counted on shapes.
"""

from typing import Any

from absl import flags

from brainseg_jax.cli.config_flags import CONFIG, check_given, run

flags.declare_key_flag("config")  # or --help leaves it out


def timm_leftovers(width: int) -> int:
    """Numbers that the paper's ViT carries from timm and never uses: positions for 14² patches, and a classifier of 1000 classes."""
    return (14 * 14 + 1) * width + 1000 * (width + 1)


def main(argv: list[str]) -> None:
    """Prints the table."""
    check_given(argv)
    print(table(rows(CONFIG.value)))


def rows(config: Any) -> list[tuple[str, int, str]]:
    """(network, parameters, what is counted) for the config's sizes: the config's own network, and Swin UNETR beside it."""
    import jax
    import jax.numpy as jnp

    from brainseg_jax import models
    from brainseg_jax.config.keys import check
    from brainseg_jax.core.pytree import count
    from brainseg_jax.objectives import OBJECTIVES
    from brainseg_jax.training.step import init_params

    check(config)
    config = config.copy_and_resolve_references()
    config.dtype = "float32"
    x, y, z = config.data.crop

    def segmenter(encoder: str, decoder: str, size: tuple[int, int, int]) -> Any:
        with config.unlocked():
            config.encoder, config.decoder = encoder, decoder
        image = jax.ShapeDtypeStruct((1, *size, config.channels), jnp.float32)
        return jax.eval_shape(models.segmenter(config).init, jax.random.key(0), image)["params"]

    out = []
    if config.encoder == "vit":
        objective = OBJECTIVES["mae"](config)
        mae = jax.eval_shape(lambda: init_params(objective, {"image": jnp.zeros((1, x, y, z, config.channels))}, 0))
        vit = count(mae["encoder"])
        out += [
            ("ViT", vit, f"the encoder, {config.vit.positions} positions, for {x} × {y} × {z} voxels"),
            (
                "ViT, as the paper counts",
                vit + timm_leftovers(config.vit.width),
                "and timm's 2-D positions and classifier, which nothing uses (89.2 M at 160³)",
            ),
            ("MAE", count(mae), "encoder and decoder of pretraining"),
        ]
        unetr = segmenter("vit", "unetr", (x, y, z))
        out += [
            ("UNETR", count(unetr), f"encoder, decoder and head, width {config.unetr.width}, {config.classes} classes"),
            ("  its decoder", count(unetr["decoder"]), "convolutions only"),
        ]
    if config.encoder == "resenc":
        unet, stages = segmenter("resenc", "unet", (x, y, z)), len(config.unet.features)
        out += [
            ("ResEnc", count(unet["encoder"]), f"the encoder, {stages} stages of {sum(config.unet.blocks)} residual blocks"),
            ("U-Net", count(unet), f"encoder, decoder and head, {config.classes} classes"),
            ("  its decoder", count(unet["decoder"]), "transposed convolutions, and those behind them"),
        ]
    swin = segmenter("swin", "swin_unetr", (32, 32, 32))
    side = {name: count(part) for name, part in swin["decoder"].items()}
    paper = count(swin["encoder"]) + sum(side[f"encoder{i}"] for i in (1, 2, 3, 4, 10))
    out += [
        ("Swin-T", count(swin["encoder"]), f"the transformer alone, width {config.swin.width}"),
        ("Swin-T, as the paper counts", paper, "and Swin UNETR's convolutions on the encoder's side (42.6 M at width 48)"),
        ("  of these, encoder10", side["encoder10"], "the convolutions at 1/32 of the grid"),
        ("Swin UNETR", count(swin), f"encoder, decoder and head, {config.classes} classes"),
    ]
    return out


def table(rows: list[tuple[str, int, str]]) -> str:
    """The rows in columns."""
    name, number = (max(len(f"{row[i]:,}" if i else row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{row[0]:{name}}  {row[1]:>{number},}  {row[2]}" for row in rows)


def command() -> None:
    """This process as the command."""
    run(main)
