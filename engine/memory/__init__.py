"""Plans of the device's memory: what is where and when, what it costs, and what PyTorch's allocator makes of it."""
