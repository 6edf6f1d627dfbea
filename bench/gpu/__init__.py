"""`python -m consisid.bench.gpu`: measure on a GPU that is there for minutes only."""
