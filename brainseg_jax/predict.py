"""`python -m brainseg_jax.predict`: segments scans (brainseg_jax/cli/predict.py). In Python `brainseg_jax.predict` is a function."""

if __name__ == "__main__":
    from brainseg_jax.cli.predict import command

    command()
else:  # importing this module would hide the package's function of the same name: so the function takes its place
    import sys

    from brainseg_jax.inference.prediction import predict

    predict.__spec__ = __spec__  # importlib looks for it
    sys.modules[__name__] = predict
