"""A photo becomes an Identity."""
