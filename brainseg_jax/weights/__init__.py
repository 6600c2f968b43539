"""Parameters on disk: checkpoints of a run, networks in one file, and transfer to fine-tuning."""
