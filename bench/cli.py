"""consisid-bench: measure an engine folder."""

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consisid.engine.errors import InputError
from consisid.engine.util.cli import add_common, run, show
from consisid.engine.util.flags import HelpFormatter, parse

EXAMPLE = """example:
  consisid-bench engines/preview --output report
"""
NEEDS = ("engine", "output")


def parser(strict: bool = True) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "consisid-bench", description="Measure an engine folder and write a report.", epilog=EXAMPLE,
        formatter_class=HelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    p.add_argument(
        "engine", nargs=None if strict else "?", default=argparse.SUPPRESS,
        help="engine folder made by consisid-build; with --random-weights a variant, such as preview or tiny-1.5",
    )  # fmt: skip
    p.add_argument(
        "--output", type=Path, required=strict, metavar="DIR", help="folder for report.json, report.md and report.html"
    )
    runs = p.add_argument_group("what is measured")
    runs.add_argument("--steps", type=int, default=10, help="denoising steps per run (default 10)")
    runs.add_argument("--runs", type=int, default=3, help="counted runs after one warm-up (default 3)")
    runs.add_argument("--memory", help="a budget such as 8GiB; the report shows its plan against what is seen")
    runs.add_argument("--random-weights", action="store_true", help="seeded random weights instead of an engine folder")
    runs.add_argument("--backend", default="eager", help="who compiles the graphs of --random-weights (default eager)")
    runs.add_argument("--device", help="where to run (default: where the folder was built for)")
    runs.add_argument("--compiled", action="store_true", help="also diffusers with torch.compile of its blocks")
    runs.add_argument("--no-peers", action="store_true", help="leave diffusers out: no waterfall top, no parity")
    runs.add_argument(
        "--threads", type=int, help="of PyTorch on the CPU (default: PyTorch's); 1 is steady on a shared machine"
    )
    other = p.add_argument_group("instead or besides")
    other.add_argument(
        "--compare", type=Path, metavar="REPORT_JSON",
        help="an earlier report: is each median within its quartiles? ENGINE may be a report.json too",
    )  # fmt: skip
    other.add_argument(
        "--identity", action="store_true", help="only compare the person in --video with that in --image"
    )
    other.add_argument("--quality", action="store_true", help="only compare each approximation with the exact video")
    other.add_argument("--image", type=Path, help="photo of the person, for --identity and --quality")
    other.add_argument("--prompt", help="of --quality: what the person does")
    other.add_argument("--video", type=Path, help="mp4 of the person, for --identity")
    add_common(p)
    return p


def work(options: argparse.Namespace) -> None:
    """The work of the command."""
    from .report import compare, measure
    from .report.parity import check

    if options.identity:
        from .tools.similarity import measure_identity

        if options.image is None or options.video is None:
            raise InputError("--identity compares a photo with a video: give --image and --video.")
        show(options, *measure_identity(Path(options.engine), options.image, options.video, options.output))
        return
    if options.quality:
        from .tools.quality import measure_quality

        show(options, *measure_quality(options))
        return
    first = None if options.compare is None else compare.read(options.compare)
    if first is not None and Path(options.engine).suffix == ".json":
        text = compared(first, compare.read(Path(options.engine)), options.output)
        show(options, {"files": [str(options.output / "compare.md")]}, text.rstrip())
        return
    if importlib.util.find_spec("matplotlib") is None:  # said before anything is measured
        raise InputError("matplotlib, which draws the report's plots, is missing; pip install 'consisid[bench]'.")
    if options.backend != "eager" and not options.random_weights:
        raise InputError("--backend belongs to --random-weights; an engine folder was compiled when it was built.")
    given = ("engine", "steps", "runs", "random_weights", "backend", "device", "compiled", "threads", "memory")
    asked = {name: getattr(options, name) for name in given}
    found = measure.measure_engine(measure.Options(**asked, peers=not options.no_peers))
    written = [str(path) for path in measure.write(found, options.output)]
    lines = list(written)
    if first is not None:
        lines.append(compared(first, found, options.output).rstrip())
        written.append(str(options.output / "compare.md"))
    show(options, {"files": written, "report": found}, "\n".join(lines))
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
    options = parse(parser, "bench", "engine", NEEDS, arguments)
    imports = ("consisid.bench.report.measure", "consisid.bench.report.compare")
    return run("consisid-bench", lambda: work(options), imports=imports, options=options, stages=False)


if __name__ == "__main__":
    sys.exit(main())
