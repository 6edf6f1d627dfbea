"""Every kernel against its PyTorch and its torch.compile form on this machine's GPU, as a share of the limit that the
hardware sets: `python -m consisid.kernels.tools.benchmark`. Without a GPU it prints what each kernel has to do, the
least time that it can take at given ceilings, and stops there.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._triton import INSTALLED, triton
from ..joint_attention import describe
from .cases import FULL, Case, cases
from .timing import ceilings, time

# Of an H200: what cuBLAS reached in bf16 on one, and the 4.8 TB/s of NVIDIA's data sheet times the nine tenths that a
# copy of memory reaches at best. Only the prediction uses them; a GPU's own ceilings are measured.
H200_TFLOPS, H200_TBYTES = 790.0, 4.3


def error(result: Any, right: Any) -> float:
    """The largest difference over all outputs."""
    pairs = [(result, right)] if isinstance(result, Tensor) else list(zip(result, right, strict=True))
    return max(float((ours.float() - theirs.float()).abs().max()) for ours, theirs in pairs)


def row(case: Case, flops: float, bandwidth: float, rounds: int) -> dict[str, Any]:
    """Milliseconds of the three forms, and which share of the limit the kernel reaches."""
    compiled = torch.compile(case.reference)
    runs = {
        "ours": lambda: case.public(*case.arguments),
        "pytorch": lambda: case.reference(*case.arguments),
        "compiled": lambda: compiled(*case.arguments),
    }
    difference = error(runs["ours"](), runs["pytorch"]())
    milliseconds = time(runs, rounds)
    limit = case.cost.seconds(flops, bandwidth) * 1e3
    return {
        "kernel": case.name,
        "milliseconds": milliseconds,
        "flops": case.cost.flops,
        "bytes": case.cost.bytes,
        "limiter": case.cost.limiter(flops, bandwidth),
        "share_of_limit": limit / milliseconds["ours"],
        "largest_difference_from_pytorch": difference,
    }


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    """One row for each kernel, each with what a reader needs to believe it."""
    flops, bandwidth = ceilings()
    about = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "ceilings": {"flops_per_second": flops, "bytes_per_second": bandwidth},
    }
    for case in cases(FULL, "cuda"):
        more = {"dispatched": describe("cuda", case.arguments[1].shape)} if case.name == "joint_attention" else {}
        yield row(case, flops, bandwidth, rounds) | more | about


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time every kernel at full size.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument(
        "--tflops", type=float, default=H200_TFLOPS, help="bf16 TFLOP/s of the prediction (default: an H200)"
    )
    parser.add_argument("--tbytes", type=float, default=H200_TBYTES, help="TB/s of the prediction (default: an H200)")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() or not INSTALLED:
        for case in cases(FULL, "meta"):
            work, rates = case.cost, (options.tflops * 1e12, options.tbytes * 1e12)
            print(f"{case.name:32s} {work.flops / 1e9:10.1f} GFLOP {work.bytes / 1e6:9.1f} MB "
                  f"{work.flops / work.bytes:8.1f} FLOP/B  at least {work.seconds(*rates) * 1e3:8.3f} ms "
                  f"({work.limiter(*rates)})")  # fmt: skip
        print(f"Predicted from {options.tflops:g} TFLOP/s and {options.tbytes:g} TB/s, a bound and not a measurement.")
        print("Times need a GPU and Triton, and this machine lacks one of them.", file=sys.stderr)
        return 2
    measured = []
    for one in rows(options.rounds):
        measured.append(one)
        spent = "  ".join(f"{name} {value:.3f} ms" for name, value in one["milliseconds"].items())
        print(f"{one['kernel']:32s} {spent}  {one['share_of_limit']:.0%} of the limit by {one['limiter']}")
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
