"""`python scripts/prepare_data.py`: what `brainseg prepare` does, under the name it had (brainseg_jax/cli/prepare.py)."""

import brainseg_jax

brainseg_jax.answer_ctrl_c()  # from before the imports, which take seconds

from brainseg_jax.cli.prepare import command  # noqa: E402

if __name__ == "__main__":
    command()
