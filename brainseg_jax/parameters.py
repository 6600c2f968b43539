"""`python -m brainseg_jax.parameters`: counts parameters (brainseg_jax/cli/parameters.py)."""

from brainseg_jax.cli.parameters import command

if __name__ == "__main__":
    command()
