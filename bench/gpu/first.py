"""The first call of a GPU that is there for minutes: one row per question, the ones that decide most first.

What takes long to compile is compiled by other processes while the kernels are checked.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from consisid.kernels.dispatch import Config, default_config

from . import attention, block, ceilings, decode
from .block import Block
from .cases import Case, Context, Work, guarded
from .compiling import Compiling, torch_compiled
from .videos import video

SHORT = 0.5  # seconds of timing per row
BUDGET, BUDGET_STEPS = "5GiB", 2
CONFIGS = (
    Config(128, 128, 8, 3, ahead=True),
    Config(128, 128, 8, 3, descriptors=True, ahead=True),
    Config(128, 128, 8, 3, descriptors=True, ahead=True, unrolled=True),
    Config(128, 128, 8, 4, ahead=True),
    Config(128, 64, 8, 3, ahead=True),
    Config(64, 128, 4, 3, ahead=True),
    Config(128, 128, 8, 2, descriptors=True, ahead=True, producer=True),
)


def hardware(c: Context) -> Iterator[Case]:
    chosen, left = ("^3", "on the device", "host to device"), {"float16", "fp8"}
    for case in ceilings.cases(c):
        at_model_sizes = case.name.startswith("product") and "^3" not in case.name
        if (at_model_sizes or any(words in case.name for words in chosen)) and left.isdisjoint(case.name.split()):
            yield replace(case, repeats=10, budget=SHORT, limit=20)


def attentions(c: Context) -> Iterator[Case]:
    kept = {name: make for name, make in attention.IMPLEMENTATIONS.items() if not name.startswith("Flex")}
    for case in attention.cases(c, kept):
        yield replace(case, repeats=10, budget=SHORT, limit=60)
    configs = {f"ours, {config}": partial(attention.with_config, config) for config in CONFIGS}
    for case in attention.cases(c, configs):
        yield replace(case, repeats=10, budget=SHORT, limit=40)


def videos(c: Context, steps: int, memory: str | None) -> Iterator[Case]:
    name = f"generate, {steps} steps" + (f", {memory}" if memory else "")
    with ExitStack() as stack:
        yield Case(name, lambda: video(c, stack, steps, memory=memory), once=True, limit=120)


def decoding(c: Context) -> Iterator[Case]:
    if c.device.type == "cpu":
        c = decode.small(c)
    makes: dict[str, Callable[[], Work]] = {
        "ours": partial(decode.ours, c, "contiguous"), "diffusers": partial(decode.theirs, c, False)
    }  # fmt: skip
    for name, make in makes.items():
        yield Case(f"decode {c.shape}, {name}", make, repeats=1, limit=60, foreign=name != "ours")


def compiled(c: Context, ahead: Compiling | None, packaged: bool) -> Work:
    """The block as a package or by torch.compile, with the weights and inputs of the eager one."""
    c.need_gpu("compiling the block")
    made: Block = c.once("block", lambda: Block(c))
    if ahead is None:
        return Work(made.block, note="nothing is compiled without data")
    if packaged:
        ahead.wait()
    runners = made.networks.runners
    networks = made.networks.under({**runners, **ahead.load(c)} if packaged else torch_compiled(runners))

    def run() -> Tensor:
        return networks.one("block", made.hidden, made.modulation, made.cos, made.sin)

    return Work(run, c.compare(run(), made.block()), c.tolerance)


def compiling(c: Context, ahead: Compiling | None) -> Iterator[Case]:
    for name in ("package of AOTInductor", "torch.compile"):
        make = partial(compiled, c, ahead, name.startswith("package"))
        yield Case(f"block, {name}", make, repeats=10, budget=SHORT, limit=75)


def waiting(ahead: Compiling) -> Work:
    ahead.wait()
    return Work(lambda: None, note="the processes that compile ahead have ended")


def cases(c: Context) -> Iterator[Case]:
    ahead = None
    if c.gpu:
        plain = default_config(torch.cuda.get_device_capability(c.device), c.dtype)
        ahead = Compiling(c, ["block"], (plain, *CONFIGS))
    try:
        yield from guarded("kernels", block.kernels, c)
        if ahead is not None:
            yield Case("waiting for what compiles ahead", partial(waiting, ahead), once=True, limit=100)
        for section in (hardware, block.whole, attentions):
            yield from guarded(section.__name__, section, c)
        yield from guarded("videos", partial(videos, steps=c.steps, memory=None), c)
        yield from guarded("decoding", decoding, c)
        yield from guarded("budgets", partial(videos, steps=BUDGET_STEPS, memory=BUDGET), c)
        yield from guarded("compiling", partial(compiling, ahead=ahead), c)
    finally:
        if ahead is not None:
            ahead.close()
