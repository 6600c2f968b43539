"""`python -m brainseg_jax.plan`: what a step takes of GPUs that are not there (brainseg_jax/cli/plan.py)."""

from brainseg_jax.cli.plan import command

if __name__ == "__main__":
    command()
