"""Where the weights of a call are, and how they get there."""
