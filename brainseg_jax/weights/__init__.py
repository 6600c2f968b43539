"""Parameters on disk: checkpoints of a run, a network in one file, and what fine-tuning takes of either."""
