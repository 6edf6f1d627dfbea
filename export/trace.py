"""`python -m consisid.export.trace preview`: every graph of a model traced at full size, without memory or a GPU."""

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from consisid.engine.backends.inductor import trace
from consisid.engine.graphs.table import graph_table
from consisid.engine.manifest import DTYPES
from consisid.engine.shapes import VideoShape
from consisid.engine.util.cli import run
from consisid.engine.variants import VARIANTS, variant_named


def trace_all(name: str, dtype: str) -> None:
    """Print a table of the graphs with their numbers of nodes and the seconds that tracing took."""
    variant = variant_named(name)
    shape = VideoShape.of(variant, None, None, None)
    print(f"{name}, {shape}, {dtype}, torch {torch.__version__}\n")
    print("| graph | nodes | seconds |\n|---|---|---|")
    for graph in graph_table(variant, shape).values():
        start = time.perf_counter()
        program = trace(graph, torch.device("meta"), DTYPES[dtype])
        print(f"| {graph.name} | {len(program.graph.nodes)} | {time.perf_counter() - start:.1f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser("python -m consisid.export.trace", description=__doc__)
    p.add_argument("variant", choices=tuple(VARIANTS))
    p.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    options = p.parse_args(arguments)
    return run("trace", lambda: trace_all(options.variant, options.dtype))


if __name__ == "__main__":
    sys.exit(main())
