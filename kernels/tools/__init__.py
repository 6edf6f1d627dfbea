"""What measures kernels on a GPU."""
