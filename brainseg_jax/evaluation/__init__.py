"""How good label maps are, and what a pretrained encoder knows."""
