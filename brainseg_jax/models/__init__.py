"""Networks in Flax Linen. An encoder, with its decoder, is a file here, what it says of itself beside it, and a line in encoders.py."""
