"""consisid-build: an engine folder from a checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from consisid.engine.commands import run


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("consisid-build", description="Compile a ConsisID checkpoint into an engine folder.")
    p.add_argument("checkpoint", help='a folder, a hub id such as BestWishYsh/ConsisID-preview, or "tiny"')
    p.add_argument("--output", type=Path, required=True, help="the engine folder to make")
    p.add_argument("--backend", default="eager", help="who compiles the graphs (default eager)")
    p.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16 on a GPU, else float32"
    )
    p.add_argument("--device", help="where the engine will run (default: the GPU if there is one, else cpu)")
    p.add_argument("--height", type=int, help="default: what the model was trained at")
    p.add_argument("--width", type=int)
    p.add_argument("--num-frames", type=int)
    p.add_argument("--bundle", action="store_true", help="copy the weights into the folder")
    return p


def make(options: argparse.Namespace) -> None:
    """The work of the command."""
    import torch

    from .build import build

    manifest = build(
        options.checkpoint,
        options.output,
        backend=options.backend,
        dtype=options.dtype,
        device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        height=options.height,
        width=options.width,
        num_frames=options.num_frames,
        bundle=options.bundle,
        report=lambda name, seconds: print(f"  {name:<16} {seconds:7.2f} s", file=sys.stderr),
    )
    spec = manifest.spec
    print(
        f"{options.output}: {spec.variant.name}, {spec.shape}, {spec.dtype}, {len(manifest.graphs)} graphs by "
        f"{spec.backend} for {spec.device}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of consisid-build; returns the exit code."""
    options = parser().parse_args(arguments)
    return run("consisid-build", lambda: make(options))


if __name__ == "__main__":
    sys.exit(main())
