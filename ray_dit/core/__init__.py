"""Tensors in, tensors out: knows nothing of Ray, files, clocks, the environment or logging."""
