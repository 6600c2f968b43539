"""`python -m brainseg_jax COMMAND`: the same as `brainseg COMMAND`, where that is not on the PATH."""

from brainseg_jax.cli.brainseg import main

if __name__ == "__main__":
    main()
