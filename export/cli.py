"""consisid-build: an engine folder from a checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from consisid.engine.errors import InputError
from consisid.engine.util.cli import add_common, run, show
from consisid.engine.util.flags import HelpFormatter, parse

IMPORTS = ("consisid.export.build", "consisid.export.describe")  # which bring PyTorch, and with it take seconds
FLAG_HELP = {
    "refit": "weights can be replaced, for a LoRA",
    "version_compatible": "later versions may load the engines",
    "hardware_compatible": "other GPUs of the same compute capability may load them",
    "plugins": "our Triton kernels in the engines, for two samples at once, instead of TensorRT's own attention",
}
EXAMPLE = """example:
  consisid-build BestWishYsh/ConsisID-preview --output engines/preview
  consisid-build tiny --output engines/tiny --backend eager      (random weights, for trying; seconds)
"""


def parser(strict: bool = True) -> argparse.ArgumentParser:
    """Names of backends and variants stand here as text: the help of a command does not wait for PyTorch."""
    p = argparse.ArgumentParser(
        "consisid-build", description="Compile a ConsisID checkpoint into an engine folder.", epilog=EXAMPLE,
        formatter_class=HelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    p.add_argument(
        "checkpoint", nargs="?", default=argparse.SUPPRESS,
        help='a folder, a hub id such as BestWishYsh/ConsisID-preview, "tiny" or "tiny-1.5"',
    )  # fmt: skip
    p.add_argument("--output", type=Path, metavar="DIR", help="the engine folder to make")
    what = p.add_argument_group("what is built")
    what.add_argument(
        "--backend", default="auto", metavar="NAME",
        help="who compiles the graphs: auto (default), eager, inductor, tensorrt or tensorrt-rtx; auto takes the "
        "fastest that is right, and eager for a small model on a CPU",
    )  # fmt: skip
    what.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16 on a GPU, else float32"
    )
    what.add_argument("--device", help="where the engine will run (default: the GPU if there is one, else cpu)")
    what.add_argument("--height", type=int, metavar="H", help="of the videos, in pixels (default: the model's)")
    what.add_argument("--width", type=int, metavar="W", help="of the videos, in pixels (default: the model's)")
    what.add_argument("--num-frames", type=int, metavar="F", help="of a video (default: the model's)")
    what.add_argument(
        "--sequence", type=int, default=1, metavar="N",
        help="also for N devices that share the tokens of a video: ulysses times ring of consisid-generate --mesh",
    )  # fmt: skip
    weights = p.add_argument_group("weights")
    weights.add_argument("--bundle", action="store_true", help="copy the weights into the folder")
    weights.add_argument("--variant", help="of the checkpoint's files, such as fp16 for model.fp16.safetensors")
    weights.add_argument(
        "--random-weights", action="store_true", help="no checkpoint: CHECKPOINT is preview, 1.5, tiny or tiny-1.5"
    )
    others = p.add_argument_group("TensorRT")
    others.add_argument("--target", metavar="SM", help="other GPUs, by compute capability: sm_89,sm_120 (tensorrt-rtx)")
    others.add_argument("--layers-per-shard", type=int, metavar="N", help="layers in an engine (default 4)")
    others.add_argument("--timing-cache", type=Path, metavar="FILE", help="measurements that builds share")
    for flag, meaning in FLAG_HELP.items():
        others.add_argument(f"--{flag.replace('_', '-')}", action="store_true", help=meaning)
    look = p.add_argument_group("without building")
    look.add_argument("--dry-run", action="store_true", help="say what would be built, and stop")
    look.add_argument("--memory", metavar="BUDGET", help="with --dry-run: also the plan for a budget such as 6GiB")
    look.add_argument("--list", type=Path, metavar="DIR", help="say what an engine folder is, and stop")
    add_common(p)
    return p


def make(options: argparse.Namespace) -> None:
    """The work of the command."""
    from consisid.engine.manifest import GraphEntry, Manifest
    from consisid.engine.util.progress import Progress

    from .build import build
    from .describe import describe_folder, folder_values, plan_build

    if options.list is not None:
        found = Manifest.read(options.list)
        show(options, folder_values(found, options.list), describe_folder(found, options.list))
        return
    if options.checkpoint is None or (options.output is None and not options.dry_run):
        raise InputError("Give a checkpoint and --output; `consisid-build tiny --output DIR` needs no download.")
    if options.memory is not None and not options.dry_run:
        raise InputError("--memory belongs to --dry-run; a budget is given when an engine is opened.")
    device = options.device or default_device()
    names = ("backend", "dtype", "height", "width", "num_frames", "variant", "random_weights", "sequence")
    settings = {name: getattr(options, name) for name in names} | {
        "targets": tuple(filter(None, (options.target or "").split(","))),
        "flags": [flag for flag in FLAG_HELP if getattr(options, flag)],
    }
    if options.layers_per_shard is not None:
        settings["layers_per_shard"] = options.layers_per_shard
    if options.dry_run:
        planned = plan_build(options.checkpoint, device=device, memory=options.memory, **settings)
        show(options, planned.values(), str(planned))
        return
    with Progress("building", None, "graph") as progress:

        def report(name: str, entry: GraphEntry, total: int) -> None:
            progress.advance(f"{name} took {entry.seconds:.2f} s with {entry.backend}", total)

        manifest = build(
            options.checkpoint, options.output, device=device, bundle=options.bundle, report=report,
            timing_cache=options.timing_cache, **settings,
        )  # fmt: skip
    show(options, folder_values(manifest, options.output), describe_folder(manifest, options.output))


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of consisid-build; returns the exit code."""
    options = parse(parser, "build", "checkpoint", (), arguments)
    options.checkpoint = getattr(options, "checkpoint", None)
    left = "no engine folder was written; the same command goes on with what is finished"
    return run("consisid-build", lambda: make(options), lambda: left, IMPORTS, options)


if __name__ == "__main__":
    sys.exit(main())
