"""What knows nothing of ConsisID."""
