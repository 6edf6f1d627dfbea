"""LoRAs: their files, what they change, and diffusers' methods for them."""
