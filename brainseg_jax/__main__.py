"""`python -m brainseg_jax COMMAND`: the command `brainseg`, where it is not on the path."""

from brainseg_jax.cli.brainseg import main

if __name__ == "__main__":
    main()
