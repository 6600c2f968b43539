"""The room for exchanging weights with MONAI's PyTorch checkpoints; nothing is in it yet."""
