"""Checkpoints of other programs as state dicts under our names, and back."""
