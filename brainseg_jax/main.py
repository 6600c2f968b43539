"""`python -m brainseg_jax.main`: trains and fine-tunes (brainseg_jax/cli/train.py)."""

from brainseg_jax.cli.train import command

if __name__ == "__main__":
    command()
