"""consisid-bench: measure an engine folder, and write it down."""
