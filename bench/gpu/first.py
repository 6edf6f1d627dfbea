"""The first call of a GPU that is there for minutes: one row per question, the ones that decide most first.

What takes long to compile is compiled by a second process while the kernels are checked.
"""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consisid.engine.backends import backend
from consisid.engine.graphs.graph import weight_shapes
from consisid.engine.video import Stats
from consisid.kernels.dispatch import Config, default_config
from consisid.kernels.joint_attention import by_kernel
from consisid.kernels.tools import cases as kernel_cases

from ..core.inputs import identity
from ..core.samples import prompt_of
from . import attention, block, ceilings, decode
from .cases import Case, Context, Work
from .step import compiled
from .videos import engine_of, figures

SHORT = 0.5  # seconds of timing per row
QUERIES = 128  # of joint attention that are compared with float64
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


class Ahead:
    """A process that compiles while this one measures: the block as a package, then attention by every config.

    Attributes:
        package: of the block, when `wait` has returned.
    """

    def __init__(self, c: Context):
        self._folder = tempfile.TemporaryDirectory()
        self.package = Path(self._folder.name) / "block.pt2"
        spawn = multiprocessing.get_context("spawn")
        given = replace(c, _made={}), self.package
        self._processes = [spawn.Process(target=work, args=given) for work in (compile_block, compile_attention)]
        for process in self._processes:
            process.start()

    def wait(self) -> None:
        """Raises RuntimeError where a process failed; what it printed stands above."""
        for process in self._processes:
            process.join()
        codes = [process.exitcode for process in self._processes]
        if any(codes):
            raise RuntimeError(f"the processes that compile ahead ended with {codes}")

    def close(self) -> None:
        for process in self._processes:
            process.kill()


def compile_block(c: Context, package: Path) -> None:
    """In a process of its own: the graph of a block by the engine's own way to compile it."""
    module: Any = backend("inductor")
    module.compile(c.weights.table["block"], package, c.device, c.dtype)


def compile_attention(c: Context, _: Path) -> None:
    """In a process of its own: into Triton's cache, attention by every config, which is called once."""
    q, k, v = attention.tensors(c)
    for config in (default_config(torch.cuda.get_device_capability(c.device), c.dtype), *CONFIGS):
        try:
            by_kernel(q, k, v, q.shape[-1] ** -0.5, config)
        except Exception as error:  # its row says so again
            print(f"{config}: {type(error).__name__}", flush=True)


def times_allowed(got: Any, reference: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """The largest error against the reference in float64, as a multiple of what tests/kernels allow: twice that of the
    reference in the dtype of the arguments, and half a unit in the last place of the largest value."""

    def listed(outputs: Any) -> list[Tensor]:
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    plain = listed(reference(*arguments))
    right = listed(reference(*(x.double() if isinstance(x, Tensor) else x for x in arguments)))
    worst = 0.0
    for ours, theirs, exact in zip(listed(got), plain, right, strict=True):
        rounding = torch.finfo(ours.dtype).eps / 2 * float(exact.abs().max())
        allowed = 2 * float((theirs.double() - exact).abs().max()) + rounding
        error = float((ours.double() - exact).abs().max())
        worst = max(worst, error / allowed if error == error else float("inf"))
    return worst


def kernel(c: Context, case: kernel_cases.Case) -> Work:
    """A kernel with arguments as the network passes them."""
    note = "the error is a multiple of what is allowed"
    public, given = case.public, case.arguments
    if case.name == "joint_attention" and c.gpu:
        config = default_config(torch.cuda.get_device_capability(c.device), c.dtype)
        public, note = partial(by_kernel, config=config), f"{note}; {config}"
    if c.device.type == "meta":
        return Work(lambda: public(*given), note=note)
    got = public(*given)
    if case.name == "joint_attention":  # float64 of all scores would be hundreds of gigabytes
        some = slice(None, None, max(1, given[0].shape[1] // QUERIES))
        got, given = got[:, some], (given[0][:, some], *given[1:])
    return Work(lambda: public(*case.arguments), times_allowed(got, case.reference, given), 1.0, note)


def kernels(c: Context) -> Iterator[Case]:
    t, v, s = c.variant.transformer, c.variant.vae, c.shape
    size = kernel_cases.Size(
        c.batch, t.max_text_seq_length, s.video_tokens, t.num_attention_heads, t.attention_head_dim,
        t.cross_attn_num_heads, t.LFE_num_querie, v.block_out_channels[0], v.norm_num_groups, (9, s.height, s.width),
        (3, s.latent_height, s.latent_width),
    )  # fmt: skip
    for case in kernel_cases.cases(size, str(c.device), c.dtype):
        yield Case(
            f"kernel {case.name}", partial(kernel, c, case), case.cost.flops, case.cost.bytes, repeats=10,
            budget=SHORT / 2, limit=45,
        )  # fmt: skip


def hardware(c: Context) -> Iterator[Case]:
    chosen, left = ("^3", "on the device", "host to device"), {"float16", "fp8"}
    for case in ceilings.cases(c):
        if any(words in case.name for words in chosen) and left.isdisjoint(case.name.split()):
            yield replace(case, repeats=10, budget=SHORT, limit=20)


def parts(c: Context) -> Iterator[Case]:
    for case in block.cases(c, exactly=False, repeats=10, budget=SHORT):
        yield replace(case, limit=30)


def attentions(c: Context) -> Iterator[Case]:
    chosen = [case for case in attention.cases(c) if not case.name.startswith(("xformers", "Flex"))]
    for case in chosen:
        yield replace(case, repeats=10, budget=SHORT, limit=60)
    for config in CONFIGS:
        yield replace(
            chosen[-1], name=f"ours, {config}", repeats=10, budget=SHORT, limit=40,
            make=partial(attention.work, c, partial(attention.by_config, c, config)),
        )  # fmt: skip


def video(c: Context, stack: ExitStack, steps: int, memory: str | None) -> Work:
    """generate() by an engine with random weights, opened here; the first call of all it does."""
    engine, person, kept = engine_of(c, stack, memory), identity(c.variant), list[Stats]()

    def run() -> None:
        kept.append(engine.generate(person, prompt_of(0), seed=0, num_inference_steps=steps).stats)

    return Work(run, note="opening the engine is not counted", more=lambda: figures(c, kept[-1]))


def videos(c: Context, steps: int, memory: str | None) -> Iterator[Case]:
    name = f"generate, {steps} steps" + (f", {memory}" if memory else "")
    with ExitStack() as stack:
        yield Case(name, lambda: video(c, stack, steps, memory), once=True, limit=120)


def packaged(c: Context, ahead: Ahead | None) -> Work:
    """The block as a package of AOTInductor, with the weights and inputs of the eager one."""
    c.need_gpu("a package of the block")
    both: block.Parts = c.once("parts", lambda: block.Parts(c))
    if ahead is None:
        return Work(both.block, note="nothing is compiled without data")
    ahead.wait()
    graph = c.weights.table["block"]
    run = backend("inductor").load(graph, ahead.package, c.device, list(weight_shapes(graph.module())))
    inputs = both.hidden, both.modulation, both.cos, both.sin
    weights = both.networks.weights.acquire("block", 0)
    return Work(lambda: run(inputs, weights), c.compare(_one(run(inputs, weights)), both.block()), c.tolerance)


def _one(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def compiled_block(c: Context) -> Work:
    """The block by torch.compile, as the step phase has it."""
    c.need_gpu("compiling the block")
    both: block.Parts = c.once("parts", lambda: block.Parts(c))
    if c.device.type == "meta":
        return Work(both.block)
    networks = compiled(both.networks)

    def run() -> Tensor:
        return networks.one("block", both.hidden, both.modulation, both.cos, both.sin)

    return Work(run, c.compare(run(), both.block()), c.tolerance)


def compiling(c: Context, ahead: Ahead | None) -> Iterator[Case]:
    for name, make in (
        ("package of AOTInductor", partial(packaged, c, ahead)),
        ("torch.compile", partial(compiled_block, c)),
    ):
        yield Case(f"block, {name}", make, repeats=10, budget=SHORT, limit=75)


def decoding(c: Context) -> Iterator[Case]:
    if c.device.type == "cpu":
        c = decode.small(c)
    for name, make in (("ours", decode.ours), ("diffusers", decode.theirs)):
        given: Any = "contiguous" if name == "ours" else False
        yield Case(f"decode {c.shape}, {name}", partial(make, c, given), repeats=1, limit=60, foreign=name != "ours")


def guarded(name: str, section: Callable[[Context], Iterator[Case]], c: Context) -> Iterator[Case]:
    """The rows of a section; where making one of them raises, a row that says so in place of what is left of it."""

    def raising(error: Exception) -> Work:
        raise error

    try:
        yield from section(c)
    except Exception as error:  # the next section goes on
        yield Case(f"rest of {name}", partial(raising, error))
    c.forget()


def waiting(ahead: Ahead) -> Work:
    ahead.wait()
    return Work(lambda: None, note="the processes that compile ahead have ended")


def cases(c: Context) -> Iterator[Case]:
    ahead = Ahead(c) if c.gpu else None
    try:
        yield from guarded("kernels", kernels, c)
        if ahead is not None:
            yield Case("waiting for what compiles ahead", partial(waiting, ahead), once=True, limit=100)
        for section in (hardware, parts, attentions):
            yield from guarded(section.__name__, section, c)
        yield from guarded("videos", partial(videos, steps=c.steps, memory=None), c)
        yield from guarded("decoding", decoding, c)
        yield from guarded("budgets", partial(videos, steps=BUDGET_STEPS, memory=BUDGET), c)
        yield from guarded("compiling", partial(compiling, ahead=ahead), c)
    finally:
        if ahead is not None:
            ahead.close()
