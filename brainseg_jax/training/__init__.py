"""Training: the loop, the compiled step, the optimizer, validation, and the files of a run."""
