"""The networks of ConsisID in the form in which they run: modules with the checkpoints' parameter names whose
weights are bound at each call, so that one graph serves every layer."""
