"""`brainseg parameters --config=configs/pretrain_vit.py`: the parameter counts of the config's networks, and the paper's Table I.

Parameters are counted on abstract shapes. `--keys` prints the reference of all config keys instead.
"""

from typing import Any

from absl import flags

from brainseg_jax.cli.config_flags import CONFIG, check_given, run

flags.declare_key_flag("config")  # or --help leaves it out
KEYS = flags.DEFINE_bool("keys", False, "Print every config key: default, allowed values and meaning.")


def main(argv: list[str]) -> None:
    """Prints the table or, with --keys, the reference of config keys."""
    if KEYS.value and CONFIG.value is None and len(argv) == 1:
        from brainseg_jax.config.reference import config_page

        print(config_page(), end="")
    else:
        check_given(argv)
        print(table(rows(CONFIG.value)))


def rows(config: Any) -> list[tuple[str, int, str]]:
    """(network, parameters, what is counted) for the config's sizes: its own network, and Swin UNETR for comparison."""
    import jax
    import jax.numpy as jnp

    from brainseg_jax.config.checks import check
    from brainseg_jax.data.labels import read_table
    from brainseg_jax.models.encoders import ENCODERS, segmenter
    from brainseg_jax.objectives import OBJECTIVES
    from brainseg_jax.training.step import init_params

    check(config)
    out, key = [], jax.random.key(0)
    classes = config.classes or len(read_table(config.data.labels).structures) + 1
    for name in dict.fromkeys((config.encoder, "swin")):
        spec, c = ENCODERS[name], config.copy_and_resolve_references()
        with c.unlocked():
            c.encoder, c.decoder, c.dtype, c.classes = name, next(iter(spec.decoders)), "float32", classes
        # A Swin's parameters do not depend on the crop.
        size = tuple(c.data.crop) if name == config.encoder else (spec.multiple(c),) * 3
        image = jnp.zeros((1, *size, c.channels))
        network = jax.eval_shape(segmenter(c).init, key, jax.ShapeDtypeStruct(image.shape, image.dtype))["params"]

        def pretraining(c: Any = c, image: Any = image, objective: str = spec.pretraining) -> Any:
            learner = OBJECTIVES[objective](c)
            return jax.eval_shape(lambda: init_params(learner, {"image": image}, 0))

        out += spec.rows(c, network, pretraining)
    return out


def table(rows: list[tuple[str, int, str]]) -> str:
    """The rows as aligned columns."""
    name, number = (max(len(f"{row[i]:,}" if i else row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{row[0]:{name}}  {row[1]:>{number},}  {row[2]}" for row in rows)


def command() -> None:
    """Entry point."""
    run(main)
