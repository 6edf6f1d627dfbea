"""The graphs that an engine runs: one row each, and the groups of layers that engines with weights inside need."""
