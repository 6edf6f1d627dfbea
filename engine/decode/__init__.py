"""Pixels to latents, and latents to frames: whole, in tiles, and in tiles without their error."""
