"""The old place of `brainseg_jax.config.recipes`, which users' config files may name."""

from brainseg_jax.config.recipes import *  # noqa: F403
