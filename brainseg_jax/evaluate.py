"""`python -m brainseg_jax.evaluate`: scores label maps (brainseg_jax/cli/evaluate.py)."""

from brainseg_jax.cli.evaluate import command

if __name__ == "__main__":
    command()
