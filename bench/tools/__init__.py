"""Commands of their own, each `python -m consisid.bench.tools.NAME`."""
