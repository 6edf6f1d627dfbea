"""Measure joint attention on the GPU of this machine and write what was found to tuning.json: `make tune`.

Our kernel with each of its options, every backend of PyTorch's scaled_dot_product_attention, and FlashAttention 3 and 4
where their packages are installed get the same tensors.
A candidate counts only when it is right: against float32, its error may be twice that of the least wrong backend of
PyTorch.

The table is written after each group of candidates, whole or not at all, with the best so far. What was interrupted
goes on where it was, if it is of the same shape and versions; what was finished is measured again. `--output PATH`
writes the table there too, to be copied from a machine that is gone afterwards.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from .._triton import INSTALLED, triton
from ..attention_others import BACKENDS, PACKAGES, by_package, by_torch, package_works, reference
from ..joint_attention import by_kernel, cost
from .timing import Run, time

GROUP = 8  # candidates that are timed in turns; each holds a result of its own meanwhile
Tried = dict[str, float | None]
Keep = Callable[[Mapping[str, float], dispatch.Config | None, bool], None]

# What PyTorch says when no kernel of a backend takes an input, and Triton when a pass of its compiler gives up.
REFUSALS = ("No available kernel", "Invalid backend", "PassManager::run failed")


def candidates(capability: tuple[int, int]) -> Iterator[dispatch.Config]:
    """What is worth compiling there. Costs that do not fit a GPU fail to launch and are passed over."""
    hopper = capability >= (9, 0)
    sizes = ((64, 64, 4), (64, 128, 4), (128, 32, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8))
    for (rows, columns, warps), stages, descriptors, ahead in itertools.product(
        sizes, (2, 3), (False, True) if hopper else (False,), (False, True)
    ):
        yield dispatch.Config(rows, columns, warps, stages, descriptors, ahead=ahead)
        if capability[0] == 9 and descriptors and ahead:  # elsewhere it spills registers
            yield dispatch.Config(rows, columns, warps, stages, descriptors, ahead=ahead, unrolled=True)
    if capability[0] == 10:
        for stages, ahead in itertools.product((2, 3), (False, True)):  # a thread for each query
            yield dispatch.Config(128, 128, 4, stages, descriptors=True, ahead=ahead)
        # The only architecture on which Triton specialises warps.
        for rows, columns, stages in itertools.product((128, 256), (64, 128), (2, 3)):
            yield dispatch.Config(rows, columns, rows // 32, stages, descriptors=True, warp_specialize=True)


def producers(capability: tuple[int, int], head_dim: int) -> Iterator[dispatch.Config]:
    """Ours in Gluon. Tried last: where its barriers were wrong, it would not end, and all else is written by then."""
    if capability[0] == 9 and head_dim in (64, 128):
        for columns, stages in itertools.product((64, 128), (2, 3)):
            yield dispatch.Config(128, columns, 8, stages, descriptors=True, ahead=True, producer=True)


def polynomials(capability: tuple[int, int]) -> tuple[int, ...]:
    """Shares of the exponentials to try on the FMA units: none where the tensor cores take longer than they do, and all
    that a polynomial adds is instructions (instructions.json)."""
    return (2, 4, 8) if capability[0] in (9, 10) else ()


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


def measure(q: Tensor, k: Tensor, v: Tensor, rounds: int, tried: Tried, keep: Keep) -> None:
    """Measure ours with each of its options, and the others.

    Args:
        tried: milliseconds by configuration, None for one that is wrong or does not run; what is in it already is not
            measured again, and what is measured is added.
        keep: called after each group with the milliseconds of each implementation so far, with the options that ours
            is the fastest with so far, None before there are any, and whether nothing is left to measure.
    """
    scale = q.shape[-1] ** -0.5
    right = reference(q[:, :256].float(), k.float(), v.float(), scale)
    theirs: dict[str, Run] = {name: partial(by_torch, q, k, v, scale, name) for name in BACKENDS}
    installed = [name for name in PACKAGES if package_works(name, q.device, q.dtype)]
    theirs |= {name: partial(by_package, q, k, v, scale, name) for name in installed}
    errors = {}
    for name, run in theirs.items():
        print(name)
        errors[name] = error(run, right)
    allowed = 2 * min(errors.values())
    theirs = {name: run for name, run in theirs.items() if errors[name] <= allowed}
    others = time(theirs, rounds)
    known: dict[str, dispatch.Config] = {}

    def fastest(count: int) -> list[dispatch.Config]:
        spent = {name: tried[name] or 0.0 for name in known if tried.get(name) is not None}
        return [known[name] for name in sorted(spent, key=lambda name: spent[name])[:count]]

    def keep_so_far() -> None:
        for config in fastest(1):
            keep({**others, "ours": tried[str(config)] or 0.0}, config, False)
            return
        keep(others, None, False)

    def try_all(configs: Sequence[dispatch.Config]) -> None:
        known.update({str(config): config for config in configs})
        left = [config for config in configs if str(config) not in tried]
        for start in range(0, len(left), GROUP):
            group = left[start : start + GROUP]
            runs: dict[str, Run] = {}
            for config in group:
                print(config)
                run = partial(by_kernel, q, k, v, scale, config)
                if error(run, right) <= allowed:
                    runs[str(config)] = run
            spent = time(runs, rounds)
            tried.update({str(config): spent.get(str(config)) for config in group})
            keep_so_far()

    keep_so_far()
    capability = torch.cuda.get_device_capability(q.device)
    try_all(list(candidates(capability)))
    try_all([replace(config, polynomial=share) for config in fastest(4) for share in polynomials(capability)])
    try_all(list(producers(capability, q.shape[-1])))
    best = next(iter(fastest(1)), None)
    if best is not None:
        theirs["ours"] = partial(by_kernel, q, k, v, scale, best)
    keep(time(theirs, rounds), best, True)


def write(gpu: str, key: str, row: Mapping[str, object], places: Sequence[Path]) -> None:
    """Put one row into the table, and the table into files, each whole or not at all."""
    table = read(places[0])
    table["measured"].setdefault(gpu, {})[key] = row
    for place in places:
        write_whole(place, json.dumps(table, indent=2) + "\n")


def read(place: Path) -> dict[str, Any]:
    """The table in a file, or, where there is none yet, the package's."""
    table: dict[str, Any] = json.loads((place if place.exists() else dispatch.PATH).read_text())
    return table


def write_whole(place: Path, text: str) -> None:
    """Write a file beside its place, and then give it its name."""
    with tempfile.NamedTemporaryFile("w", dir=place.parent, prefix=f".{place.name}.", delete=False) as file:
        try:
            file.write(text)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, place)
        except BaseException:
            os.unlink(file.name)
            raise


def find_places(output: Path | None) -> list[Path]:
    """Which files the table goes to: the package's own, unless it cannot be written, and `output`.

    Raises:
        ValueError: there would be none, or `output` cannot be written.
    """
    places = [dispatch.PATH, *([output.absolute()] if output else [])]
    able = [place for place in places if os.access(place.parent, os.W_OK) and not place.is_dir()]
    if output and output.absolute() not in able:
        raise ValueError(f"--output {output} cannot be written; name a file in a folder that is there.")
    if not able:
        raise ValueError(f"{dispatch.PATH} cannot be written; name another file with --output.")
    return able


def left_off(gpu: str, key: str, about: Mapping[str, object], places: Sequence[Path]) -> Tried:
    """What an interrupted run measured of the same shape with the same versions."""
    row = read(places[0])["measured"].get(gpu, {}).get(key, {})
    same = row.get("complete") is False and all(row.get(name) == value for name, value in about.items())
    return dict(row["tried"]) if same else {}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Find the fastest joint attention on this GPU.")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=17776, help="text and video together (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=48)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, metavar="PATH", help="write the table to this file too")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() or not INSTALLED:
        print("Tuning measures on a GPU, with Triton, and this machine lacks one of them.", file=sys.stderr)
        return 2
    try:
        places = find_places(options.output)
    except ValueError as reason:
        print(reason, file=sys.stderr)
        return 2
    shape = [options.batch, options.tokens, 3, options.heads, options.head_dim]
    qkv = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
    q, k, v = qkv[:, :, 0].contiguous(), qkv[:, :, 1].contiguous(), qkv[:, :, 2]
    work = cost(options.batch, options.tokens, options.tokens, options.heads, options.head_dim, q.element_size())
    gpu, key = torch.cuda.get_device_name(), dispatch.shape_class(options.head_dim, options.tokens)
    versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
    command = (
        f"python -m consisid.kernels.tools.autotune {' '.join(arguments if arguments is not None else sys.argv[1:])}"
    )
    about: dict[str, Any] = {"shape": shape, "versions": versions}
    tried = left_off(gpu, key, about, places)

    def keep(times: Mapping[str, float], config: dispatch.Config | None, complete: bool) -> None:
        rates = {name: round(work.flops / spent / 1e9, 1) for name, spent in times.items()}
        chosen = config or dispatch.default_config(torch.cuda.get_device_capability(), q.dtype)
        fastest = min(times, key=lambda name: times[name])
        row = {"fastest": fastest, "config": asdict(chosen), "tflops": rates, "milliseconds": dict(times), **about}
        write(gpu, key, row | {"complete": complete, "tried": tried, "command": command.strip()}, places)
        print(f"{gpu}, {key}: {fastest}, {len(tried)} configurations tried")
        if complete:
            for name, spent in sorted(times.items(), key=lambda item: item[1]):
                print(f"{name:10s} {spent:8.3f} ms  {rates[name]:7.1f} TFLOP/s")

    measure(q, k, v, options.rounds, tried, keep)
    print(f"written to {', '.join(map(str, places))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
