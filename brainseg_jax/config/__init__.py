"""What an experiment is: its keys, what they may be, where their values come from, and the recipes that configs share."""

from brainseg_jax.config.keys import base
from brainseg_jax.config.resolve import recipe

__all__ = ["base", "recipe"]
