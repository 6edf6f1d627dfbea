"""One call of generate: what was asked, its state, and what happens when memory runs out or the process ends."""
