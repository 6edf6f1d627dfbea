"""What every measurement shares: the environment, timing, samples, counted work, diffusers beside the engine."""
