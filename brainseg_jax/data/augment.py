"""Augmentation inside the compiled step, on the device: each function is pure in (key, batch)."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped
from ml_collections import ConfigDict


def as_float(image: Shaped[jax.Array, "b x y z c"]) -> Float[jax.Array, "b x y z c"]:
    """Stored intensities as float32 in [0, 1]; uint8 holds round(255·value)."""
    return image.astype(jnp.float32) / (255.0 if image.dtype == jnp.uint8 else 1.0)


def intensity(
    key: jax.Array, image: Float[jax.Array, "b x y z c"], scale: float, shift: float, chance: float
) -> Float[jax.Array, "b x y z c"]:
    """Each with its own `chance` per sample: values times 1 + U(±scale), then plus U(±shift) (as MONAI's two transforms do)."""
    b = image.shape[0]
    keys = jax.random.split(key, 4)

    def draw(which: jax.Array, amount: jax.Array, limit: float) -> jax.Array:
        happens = jax.random.bernoulli(which, chance, (b, 1, 1, 1, 1))
        return jnp.where(happens, jax.random.uniform(amount, (b, 1, 1, 1, 1), minval=-limit, maxval=limit), 0.0)

    return image * (1 + draw(keys[0], keys[1], scale)) + draw(keys[2], keys[3], shift)


def prepare_train(config: ConfigDict):
    """What a training batch undergoes before the objective: `(key, batch) → batch`."""
    c = config.augment

    def prepare(key: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        image = as_float(batch["image"])
        return batch | {"image": intensity(key, image, c.scale, c.shift, c.chance) if c.chance else image}

    return prepare


def prepare_eval(key: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What a held-out batch undergoes: nothing but the change to float."""
    return batch | {"image": as_float(batch["image"])}
