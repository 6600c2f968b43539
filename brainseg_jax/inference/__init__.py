"""Inference: from scans to label maps in native space, by trained networks."""
