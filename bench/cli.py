"""consisid-bench: measure an engine folder."""

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consisid.engine.errors import InputError
from consisid.engine.util.cli import add_common, run


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("consisid-bench", description="Measure an engine folder and write a report.")
    add_common(p)
    p.add_argument(
        "engine",
        help="engine folder made by consisid-build; with --random-weights a variant, such as preview or tiny-1.5",
    )
    p.add_argument("--output", type=Path, required=True, help="folder for report.json, report.md and report.html")
    p.add_argument("--steps", type=int, default=10, help="denoising steps per run (default 10)")
    p.add_argument("--runs", type=int, default=3, help="counted runs after one warm-up (default 3)")
    p.add_argument("--memory", help="a budget such as 8GiB; the report shows its plan against what is seen")
    p.add_argument("--random-weights", action="store_true", help="seeded random weights instead of an engine folder")
    p.add_argument("--backend", default="eager", help="who compiles the graphs of --random-weights (default eager)")
    p.add_argument("--device", help="where to run (default: where the folder was built for)")
    p.add_argument("--compiled", action="store_true", help="also diffusers with torch.compile of its blocks")
    p.add_argument("--no-peers", action="store_true", help="leave diffusers out: no waterfall top, no parity")
    p.add_argument(
        "--threads", type=int, help="of PyTorch on the CPU (default: PyTorch's); 1 is steady on a shared machine"
    )
    p.add_argument(
        "--compare", type=Path, metavar="REPORT_JSON",
        help="an earlier report: is each median within its quartiles? ENGINE may be a report.json too",
    )  # fmt: skip
    p.add_argument("--identity", action="store_true", help="only compare the person in --video with the one in --image")
    p.add_argument("--image", type=Path, help="photo of the person, for --identity")
    p.add_argument("--video", type=Path, help="mp4 of the person, for --identity")
    return p


def work(options: argparse.Namespace) -> None:
    """The work of the command."""
    from .report import compare, measure
    from .report.parity import check

    if options.identity:
        from .tools.similarity import measure_identity

        if options.image is None or options.video is None:
            raise InputError("--identity compares a photo with a video: give --image and --video.")
        print(measure_identity(Path(options.engine), options.image, options.video, options.output))
        return
    first = None if options.compare is None else compare.read(options.compare)
    if first is not None and Path(options.engine).suffix == ".json":
        print(compared(first, compare.read(Path(options.engine)), options.output), end="")
        return
    if importlib.util.find_spec("matplotlib") is None:  # said before anything is measured
        raise InputError("matplotlib, which draws the report's plots, is missing; pip install 'consisid[bench]'.")
    if options.backend != "eager" and not options.random_weights:
        raise InputError("--backend belongs to --random-weights; an engine folder was compiled when it was built.")
    given = ("engine", "steps", "runs", "random_weights", "backend", "device", "compiled", "threads", "memory")
    asked = {name: getattr(options, name) for name in given}
    found = measure.measure_engine(measure.Options(**asked, peers=not options.no_peers))
    for path in measure.write(found, options.output):
        print(path)
    if first is not None:
        print(compared(first, found, options.output), end="")
    check(found["parity"])


def compared(first: Mapping[str, Any], second: Mapping[str, Any], folder: Path) -> str:
    """compare.md, which is written too."""
    from .core.tables import write_files
    from .report.compare import compare, markdown

    text = markdown(first, second, compare(first, second))
    write_files(folder, {"compare.md": text})
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of consisid-bench; returns the exit code."""
    options = parser().parse_args(arguments)
    imports = ("consisid.bench.report.measure", "consisid.bench.report.compare")
    return run("consisid-bench", lambda: work(options), imports=imports, options=options)


if __name__ == "__main__":
    sys.exit(main())
