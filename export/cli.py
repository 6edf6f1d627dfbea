"""consisid-build: an engine folder from a checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from consisid.engine.errors import InputError
from consisid.engine.util.cli import add_common, import_interruptibly, run

IMPORTS = ("consisid.export.build", "consisid.export.describe")  # which bring PyTorch, and with it take seconds
FLAG_HELP = {
    "refit": "weights can be replaced, for a LoRA",
    "version_compatible": "later versions may load the engines",
    "hardware_compatible": "other GPUs of the same compute capability may load them",
    "plugins": "our Triton kernels in the engines, for two samples at once, instead of TensorRT's own attention",
}


def parser() -> argparse.ArgumentParser:
    from consisid.engine.backends import BACKENDS
    from consisid.engine.graphs.grouped import LAYERS
    from consisid.engine.variants import VARIANTS

    from .compile import AUTO

    p = argparse.ArgumentParser("consisid-build", description="Compile a ConsisID checkpoint into an engine folder.")
    add_common(p)
    p.add_argument(
        "checkpoint", nargs="?", help='a folder, a hub id such as BestWishYsh/ConsisID-preview, "tiny" or "tiny-1.5"'
    )
    p.add_argument("--output", type=Path, help="the engine folder to make")
    p.add_argument(
        "--backend", default="auto", help=f"who compiles the graphs: {', '.join((AUTO, *BACKENDS))} (default auto)"
    )
    p.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16 on a GPU, else float32"
    )
    p.add_argument("--device", help="where the engine will run (default: the GPU if there is one, else cpu)")
    p.add_argument("--height", type=int, help="default: what the model was trained at")
    p.add_argument("--width", type=int)
    p.add_argument("--num-frames", type=int)
    p.add_argument("--bundle", action="store_true", help="copy the weights into the folder")
    p.add_argument("--variant", help="of the checkpoint's files, such as fp16 for model.fp16.safetensors")
    p.add_argument("--random-weights", action="store_true", help=f"no checkpoint: CHECKPOINT is {', '.join(VARIANTS)}")
    p.add_argument("--target", help="compute capabilities of other GPUs, such as sm_89,sm_120 (tensorrt-rtx)")
    p.add_argument("--layers-per-shard", type=int, default=LAYERS, metavar="N", help=f"of a TensorRT engine ({LAYERS})")
    p.add_argument("--timing-cache", type=Path, metavar="FILE", help="measurements that TensorRT builds share")
    for flag, meaning in FLAG_HELP.items():
        p.add_argument(f"--{flag.replace('_', '-')}", action="store_true", help=f"TensorRT: {meaning}")
    p.add_argument("--dry-run", action="store_true", help="say what would be built, and stop")
    p.add_argument("--memory", help='with --dry-run: also print the plan for a budget such as "6GiB"')
    p.add_argument("--list", type=Path, metavar="DIR", help="say what an engine folder is, and stop")
    return p


def make(options: argparse.Namespace) -> None:
    """The work of the command."""
    from consisid.engine.manifest import GraphEntry, Manifest
    from consisid.engine.util.progress import Progress

    from .build import build
    from .describe import describe_folder, describe_plan

    if options.list is not None:
        print(describe_folder(Manifest.read(options.list), options.list))
        return
    if options.checkpoint is None or (options.output is None and not options.dry_run):
        raise InputError("Give a checkpoint and --output; `consisid-build tiny --output DIR` needs no download.")
    if options.memory is not None and not options.dry_run:
        raise InputError("--memory belongs to --dry-run; a budget is given when an engine is opened.")
    device = options.device or default_device()
    names = ("backend", "dtype", "height", "width", "num_frames", "variant", "random_weights", "layers_per_shard")
    settings = {name: getattr(options, name) for name in names} | {
        "targets": tuple(filter(None, (options.target or "").split(","))),
        "flags": [flag for flag in FLAG_HELP if getattr(options, flag)],
    }
    if options.dry_run:
        print(describe_plan(options.checkpoint, device=device, memory=options.memory, **settings))
        return
    with Progress("building", None, "graph") as progress:

        def report(name: str, entry: GraphEntry, total: int) -> None:
            progress.advance(f"{name} took {entry.seconds:.2f} s with {entry.backend}", total)

        manifest = build(
            options.checkpoint, options.output, device=device, bundle=options.bundle, report=report,
            timing_cache=options.timing_cache, **settings,
        )  # fmt: skip
    print(describe_folder(manifest, options.output))


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of consisid-build; returns the exit code."""
    import_interruptibly("consisid-build", IMPORTS)  # the flags say which backends there are
    options = parser().parse_args(arguments)
    left = "no engine folder was written; the same command goes on with what is finished"
    return run("consisid-build", lambda: make(options), lambda: left, options=options)


if __name__ == "__main__":
    sys.exit(main())
