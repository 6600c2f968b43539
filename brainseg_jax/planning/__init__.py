"""Planning: memory, kernels, collectives, FLOPs and time of a training step on GPUs that are not present."""
