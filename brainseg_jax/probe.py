"""`python -m brainseg_jax.probe`: what a pretrained encoder knows (brainseg_jax/cli/probe.py)."""

from brainseg_jax.cli.probe import command

if __name__ == "__main__":
    command()
