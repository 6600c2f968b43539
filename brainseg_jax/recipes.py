"""The former name of `brainseg_jax.config.recipes`, kept for users' config files."""

from brainseg_jax.config.recipes import *  # noqa: F403
