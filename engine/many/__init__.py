"""Many videos: requests wait in a queue, and several go through the weights together."""
