"""One transformer block: its kernels and products one by one, the block as the engine's graph runs it, diffusers'."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from consisid.engine.networks.positions import rotary_tables
from consisid.kernels.dispatch import default_config
from consisid.kernels.joint_attention import by_kernel
from consisid.kernels.tools import cases as kernel_cases

from ..core.reference import block as reference_block
from . import ceilings
from .cases import Case, Context, Work


class Block:
    """The first block with its face attention, and what it is called with at the shape of a step."""

    def __init__(self, c: Context):
        t, rows = c.variant.transformer, (c.batch, c.tokens)
        self.networks = c.weights.networks(["block", "face"], layers=1)
        self.hidden, self.modulation = c.randn(*rows, t.inner_dim), c.randn(2, 2, 3, t.inner_dim, seed=2) * 0.1
        self.cos, self.sin = (x.to(c.device) for x in rotary_tables(t, c.shape))
        features = (1, t.cross_attn_num_heads * t.LFE_num_querie, t.inner_dim)
        self.keys, self.values = c.randn(*features, seed=4) * t.inner_dim**-0.5, c.randn(*features, seed=5)

    def block(self) -> Tensor:
        return self.networks.one("block", self.hidden, self.modulation, self.cos, self.sin)

    def block_and_face(self) -> Tensor:
        return self.networks.one("face", self.block(), self.keys, self.values)


def kernel(c: Context, case: kernel_cases.Case) -> Work:
    """A kernel with arguments as the network passes them, against its reference in the same dtype."""
    public, note = case.public, "tests/kernels/test_gpu.py compares it with float64"
    if case.name == "joint_attention" and c.gpu:  # ours, whatever the table of choices says
        config = default_config(torch.cuda.get_device_capability(c.device), c.dtype)
        public, note = partial(by_kernel, config=config), f"{note}; {config}"
    run = partial(public, *case.arguments)
    return Work(run, c.compare(run(), case.reference(*case.arguments)), c.tolerance, note)


def kernels(c: Context) -> Iterator[Case]:
    """Every kernel of the transformer and of the decoder."""
    t, v, s = c.variant.transformer, c.variant.vae, c.shape
    size = kernel_cases.Size(
        c.batch, t.max_text_seq_length, s.video_tokens, t.num_attention_heads, t.attention_head_dim,
        t.cross_attn_num_heads, t.LFE_num_querie, v.block_out_channels[0], v.norm_num_groups, (9, s.height, s.width),
        (3, s.latent_height, s.latent_width),
    )  # fmt: skip
    for case in kernel_cases.cases(size, str(c.device), c.dtype):
        yield Case(
            f"kernel {case.name}", partial(kernel, c, case), case.cost.flops, case.cost.bytes, repeats=10, budget=0.25,
            limit=45,
        )  # fmt: skip


def theirs(c: Context) -> Work:
    """diffusers' ConsisIDBlock with the weights of ours. It computes its own modulation, from a time embedding."""
    block, ours = reference_block(c.weights), c.once("block", lambda: Block(c))
    temb = c.randn(1, c.variant.transformer.time_embed_dim, seed=6)
    modulation = c.weights.networks(["modulation"], layers=1).one("modulation", F.silu(temb))[0]
    rotary = (ours.cos.repeat_interleave(2, 1), ours.sin.repeat_interleave(2, 1))
    text = c.variant.transformer.max_text_seq_length

    def run() -> Any:
        hidden, encoder = block(ours.hidden[:, text:], ours.hidden[:, :text], temb.expand(c.batch, -1), rotary)
        return torch.cat((encoder, hidden), 1)

    got = ours.networks.one("block", ours.hidden, modulation, ours.cos, ours.sin)
    return Work(run, c.compare(got, run()), c.tolerance, "the error is between ours and theirs, at the full shape")


def whole(c: Context) -> Iterator[Case]:
    """The block, with its face attention, and diffusers' block."""
    t, element, rows = c.variant.transformer, c.dtype.itemsize, c.batch * c.tokens
    dim, case = t.inner_dim, partial(Case, repeats=10, budget=0.5, limit=30)
    flops = 4.0 * c.batch * c.tokens**2 * dim + 24.0 * rows * dim**2
    faces = 4.0 * c.batch * c.shape.video_tokens * dim * t.cross_attn_num_heads * t.LFE_num_querie
    moved = 2.0 * rows * dim * element + 12.0 * dim**2 * element

    def ours(run: Callable[[Block], Tensor]) -> Work:
        block = c.once("block", lambda: Block(c))
        return Work(partial(run, block), note="checked elsewhere: against diffusers' block, in its row")

    yield case("block", partial(ours, Block.block), flops, moved)
    if t.is_train_face:
        yield case("block and face", partial(ours, Block.block_and_face), flops + faces, moved)
    yield case("block, diffusers", partial(theirs, c), flops, moved, foreign=True)


def cases(c: Context) -> Iterator[Case]:
    yield from (case for case in kernels(c) if "group_norm" not in case.name)  # which is the decoder's
    yield from ceilings.products(c)
    yield from whole(c)
