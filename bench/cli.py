"""consisid-bench: measure an engine folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from consisid.engine.commands import run


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("consisid-bench", description="Measure an engine folder and write a report.")
    p.add_argument("engine", type=Path, help="engine folder made by consisid-build")
    p.add_argument("--output", type=Path, required=True, help="folder for report.json and report.md")
    p.add_argument("--steps", type=int, default=10, help="denoising steps per run (default 10)")
    p.add_argument("--runs", type=int, default=3, help="counted runs after one warm-up (default 3)")
    return p


def measure(options: argparse.Namespace) -> None:
    """The work of the command."""
    from .report import bench, write

    report = bench(options.engine, options.steps, options.runs)
    for path in write(report, options.output):
        print(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of consisid-bench; returns the exit code."""
    options = parser().parse_args(arguments)
    return run("consisid-bench", lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
