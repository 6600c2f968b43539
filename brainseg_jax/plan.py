"""`python -m brainseg_jax.plan`: estimates memory and time of a training step without GPUs (brainseg_jax/cli/plan.py)."""

from brainseg_jax.cli.plan import command

if __name__ == "__main__":
    command()
