"""`python -m brainseg_jax.probe`: linear probing of a pretrained encoder (brainseg_jax/cli/probe.py)."""

from brainseg_jax.cli.probe import command

if __name__ == "__main__":
    command()
