"""`python -m brainseg_jax.predict`: segments scans (brainseg_jax/cli/predict.py). From Python `brainseg_jax.predict` is a function."""

if __name__ == "__main__":
    from brainseg_jax.cli.predict import command

    command()
else:  # `import brainseg_jax.predict` gives the package's attribute to this module: the function again
    import sys

    from brainseg_jax.inference.prediction import predict

    predict.__spec__ = __spec__  # or importlib finds no module here
    sys.modules[__name__] = predict
