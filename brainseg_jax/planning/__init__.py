"""What a training step would take of GPUs that are not there: its memory, kernels, traffic between devices, work and time."""
