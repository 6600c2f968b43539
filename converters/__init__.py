"""Weights from and to MONAI's PyTorch checkpoints: tables of names, one file for each network."""
