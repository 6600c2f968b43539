"""Configs of experiments: the keys and their rules, where values come from, and the recipes that config files share."""

from brainseg_jax.config.keys import base
from brainseg_jax.config.resolve import recipe

__all__ = ["base", "recipe"]
