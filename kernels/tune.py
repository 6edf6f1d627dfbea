"""Measure joint attention on the GPU of this machine and write what was found to tuning.json: `make tune`.

Our kernel with each of its options and every backend of PyTorch's scaled_dot_product_attention get the same tensors.
A candidate counts only when it is right: against float32, its error may be twice that of the least wrong backend of
PyTorch.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from . import tuning
from ._triton import INSTALLED, triton
from .joint_attention import BACKENDS, by_kernel, by_torch, cost, reference
from .timing import Run, time

# What PyTorch says when no kernel of a backend takes an input, and Triton when a pass of its compiler gives up.
REFUSALS = ("No available kernel", "Invalid backend", "PassManager::run failed")


def candidates(capability: tuple[int, int]) -> Iterator[tuning.Config]:
    """What is worth compiling there. Sizes that do not fit a GPU fail to launch and are passed over."""
    hopper = capability >= (9, 0)
    sizes = ((64, 64, 4), (64, 128, 4), (128, 32, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8))
    for (rows, columns, warps), stages, descriptors, ahead in itertools.product(
        sizes, (2, 3), (False, True) if hopper else (False,), (False, True)
    ):
        yield tuning.Config(rows, columns, warps, stages, descriptors, ahead=ahead)
    if capability[0] == 10:  # the only architecture on which Triton specialises warps
        for rows, columns, stages in itertools.product((128, 256), (64, 128), (2, 3)):
            yield tuning.Config(rows, columns, rows // 32, stages, descriptors=True, warp_specialize=True)


def does_not_fit(reason: Exception) -> bool:
    """Whether an error says that this GPU or version cannot run a candidate, and not that something is wrong here."""
    if INSTALLED:
        from triton.compiler.errors import CompilationError
        from triton.runtime.errors import OutOfResources, PTXASError

        if isinstance(reason, OutOfResources | PTXASError | CompilationError):
            return True
    return type(reason) is RuntimeError and any(words in str(reason) for words in REFUSALS)


def error(run: Run, right: Tensor) -> float:
    """Largest error among the first queries; infinite for what does not fit this GPU. Other errors are raised."""
    try:
        return float((run()[:, : right.shape[1]].float() - right).abs().max())
    except Exception as reason:
        if not does_not_fit(reason):
            raise
        first_line = (str(reason).splitlines() or [type(reason).__name__])[0]
        print(f"    does not run: {first_line[:100]}")
        return float("inf")


def measure(q: Tensor, k: Tensor, v: Tensor, rounds: int) -> tuple[dict[str, float], tuning.Config]:
    """Milliseconds of ours and of each backend, and the options with which ours took that long."""
    scale = q.shape[-1] ** -0.5
    right = reference(q[:, :256].float(), k.float(), v.float(), scale)
    theirs: dict[str, Run] = {name: partial(by_torch, q, k, v, scale, name) for name in BACKENDS}
    errors = {}
    for name, run in theirs.items():
        print(name)
        errors[name] = error(run, right)
    allowed = 2 * min(errors.values())

    def ours(configs: Sequence[tuning.Config]) -> dict[tuning.Config, float]:
        found: dict[tuning.Config, float] = {}
        for start in range(0, len(configs), 8):  # each holds a result of its own while it is timed
            tried: dict[str, Run] = {}
            for config in configs[start : start + 8]:
                print(config)
                run = partial(by_kernel, q, k, v, scale, config)
                if error(run, right) <= allowed:
                    tried[repr(config)] = run
            spent = time(tried, rounds)
            found |= {config: spent[repr(config)] for config in configs if repr(config) in spent}
        return found

    found = ours(list(candidates(torch.cuda.get_device_capability(q.device))))
    best = sorted(found, key=lambda config: found[config])[:4]
    found |= ours([replace(config, polynomial=share) for config in best for share in (2, 4)])
    config = min(found, key=lambda config: found[config])
    final = {name: run for name, run in theirs.items() if errors[name] <= allowed}
    return time(final | {"ours": partial(by_kernel, q, k, v, scale, config)}, rounds), config


def write(gpu: str, key: str, row: dict[str, object]) -> None:
    """Put one row into the table, whole or not at all."""
    table = json.loads(tuning.PATH.read_text())
    table["measured"].setdefault(gpu, {})[key] = row
    temporary = tuning.PATH.with_suffix(".json.new")
    temporary.write_text(json.dumps(table, indent=2) + "\n")
    os.replace(temporary, tuning.PATH)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Find the fastest joint attention on this GPU.")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=17776, help="text and video together (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=48)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() or not INSTALLED:
        print("Tuning measures on a GPU, with Triton, and this machine lacks one of them.", file=sys.stderr)
        return 2
    shape = (options.batch, options.tokens, 3, options.heads, options.head_dim)
    qkv = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
    q, k, v = qkv[:, :, 0].contiguous(), qkv[:, :, 1].contiguous(), qkv[:, :, 2]
    times, config = measure(q, k, v, options.rounds)
    work = cost(options.batch, options.tokens, options.tokens, options.heads, options.head_dim, q.element_size())
    rates = {name: round(work.flops / spent / 1e9, 1) for name, spent in times.items()}
    for name, spent in sorted(times.items(), key=lambda item: item[1]):
        print(f"{name:10s} {spent:8.3f} ms  {rates[name]:7.1f} TFLOP/s")
    gpu, fastest = torch.cuda.get_device_name(), min(times, key=lambda name: times[name])
    key = tuning.shape_class(options.head_dim, options.tokens)
    versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
    command = f"python -m consisid.kernels.tune {' '.join(arguments if arguments is not None else sys.argv[1:])}"
    row: dict[str, object] = {
        "fastest": fastest,
        "config": asdict(config),
        "tflops": rates,
        "milliseconds": times,
        "shape": shape,
    }
    write(gpu, key, row | {"versions": versions, "command": command.strip()})
    print(f"{gpu}, {key}: {fastest}; written to {tuning.PATH.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
