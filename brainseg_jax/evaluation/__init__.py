"""Evaluation: scores of label maps, and linear probing of a pretrained encoder."""
