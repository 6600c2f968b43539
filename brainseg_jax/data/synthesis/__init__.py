"""Synthesis of scans from label maps."""
