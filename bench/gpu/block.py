"""One transformer block by part, as the engine's graph runs it, and diffusers' block beside it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from consisid import kernels
from consisid.engine.graphs.graph import weight_shapes
from consisid.engine.networks.positions import rotary_tables
from consisid.engine.networks.transformer import FACE_NORM_EPS, QK_NORM_EPS

from ..core.reference import block as reference_block
from ..core.weights import RandomWeights
from .cases import Case, Context, Work


class Parts:
    """The tensors of a block at the shape of a step, and each part as a call."""

    def __init__(self, c: Context):
        self.c, t = c, c.variant.transformer
        self.t, self.text, self.eps = t, t.max_text_seq_length, t.norm_eps
        self.networks = c.weights.networks(["block", "face"], layers=1)
        self.w = dict(zip(_names(c, "block"), RandomWeights.held(self.networks)["block"][0], strict=True))
        self.face_norm = dict(zip(_names(c, "face"), RandomWeights.held(self.networks)["face"][0], strict=True))
        rows = c.batch, c.tokens
        self.hidden, self.update = c.randn(*rows, t.inner_dim), c.randn(*rows, t.inner_dim, seed=1)
        self.modulation = c.randn(2, 2, 3, t.inner_dim, seed=2) * 0.1
        self.qkv = c.randn(*rows, 3 * t.inner_dim, seed=3)
        angles = rotary_tables(t, c.shape)
        self.cos, self.sin = (x.to(c.device) for x in angles)
        identity = (1, t.cross_attn_num_heads * t.LFE_num_querie, t.inner_dim)
        self.keys, self.values = c.randn(*identity, seed=4) * t.inner_dim**-0.5, c.randn(*identity, seed=5)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self) -> Tensor:
        weight, bias = self.w["norm1.norm.weight"], self.w["norm1.norm.bias"]
        return kernels.modulated_norm(self.hidden, self.modulation[0], weight, bias, self.text, self.eps)

    def gated_norm(self) -> Any:
        weight, bias = self.w["norm2.norm.weight"], self.w["norm2.norm.bias"]
        first, second = self.modulation
        return kernels.gated_modulated_norm(self.hidden, self.update, first, second, weight, bias, self.text, self.eps)

    def residual(self) -> Tensor:
        return kernels.gated_residual(self.hidden, self.update, self.modulation[1], self.text)

    def rotated(self) -> Any:
        w, heads = self.w, self.t.num_attention_heads
        return kernels.qk_norm_rope(
            self.qkv, w["attn1.norm_q.weight"], w["attn1.norm_q.bias"], w["attn1.norm_k.weight"],
            w["attn1.norm_k.bias"], self.cos, self.sin, heads, QK_NORM_EPS,
        )  # fmt: skip

    def attention(self) -> Tensor:
        size = (self.c.batch, self.c.tokens, 3, self.t.num_attention_heads, -1)
        q, k, v = self.qkv.view(size).unbind(2)
        return kernels.joint_attention(q, k, v, q.shape[-1] ** -0.5)

    def wide(self) -> Tensor:
        """Between the two products of the feed-forward."""
        return self.c.once("wide", lambda: self.linear("ff.net.0.proj", self.hidden))

    def gelu(self) -> Tensor:
        return F.gelu(self.wide(), approximate="tanh")

    def face(self) -> Tensor:
        weight, bias = self.face_norm["norm2.weight"], self.face_norm["norm2.bias"]
        heads = self.t.cross_attn_num_heads
        return kernels.face_cross_attention(
            self.hidden, self.keys, self.values, weight, bias, heads, self.text, FACE_NORM_EPS
        )

    def block(self) -> Tensor:
        return self.networks.one("block", self.hidden, self.modulation, self.cos, self.sin)

    def block_and_face(self) -> Tensor:
        return self.networks.one("face", self.block(), self.keys, self.values)


def _names(c: Context, graph: str) -> list[str]:
    return list(weight_shapes(c.weights.table[graph].module()))


def pair(c: Context) -> tuple[Parts, Parts]:
    """The parts in our dtype on the device, and in float32 on the CPU, where the kernels are their references. One
    latent frame long: the reference is exact and slow. Both read the same numbers, after the rounding to our dtype."""
    shape = replace(c.shape, latent_frames=1, num_frames=1)
    low = Parts(replace(c, shape=shape, _made={}))
    high = Parts(replace(c, shape=shape, device=torch.device("cpu"), dtype=torch.float32, _made={}))
    for name in ("w", "face_norm"):
        setattr(high, name, {key: x.float().cpu() for key, x in getattr(low, name).items()})
    for name in ("hidden", "update", "modulation", "qkv", "keys", "values"):
        setattr(high, name, getattr(low, name).float().cpu())
    weights: Any = high.networks.weights
    for graph in ("block", "face"):
        weights[graph] = [tuple(x.float().cpu() for x in RandomWeights.held(low.networks)[graph][0])]
    return low, high


def exact(c: Context, part: str) -> float | None:
    """The error of a part against its reference; None on the meta device."""
    if c.device.type == "meta":
        return None
    low, high = c.once("pair", lambda: pair(c))
    got, right = getattr(low, part)(), getattr(high, part)()
    if isinstance(got, Tensor):
        return c.compare(got.cpu(), right)
    return c.compare([x.cpu() for x in got], right)


def theirs(c: Context) -> Work:
    """diffusers' ConsisIDBlock with the weights of ours. It computes its own modulation, from a time embedding."""
    block = reference_block(c.weights)
    parts: Parts = c.once("parts", lambda: Parts(c))
    temb = c.randn(1, c.variant.transformer.time_embed_dim, seed=6)
    modulation = c.weights.networks(["modulation"], layers=1).one("modulation", F.silu(temb))[0]
    rotary = (parts.cos.repeat_interleave(2, 1), parts.sin.repeat_interleave(2, 1))
    text = parts.text

    def run() -> Any:
        hidden, encoder = block(parts.hidden[:, text:], parts.hidden[:, :text], temb.expand(c.batch, -1), rotary)
        return torch.cat((encoder, hidden), 1)

    got = parts.networks.one("block", parts.hidden, modulation, parts.cos, parts.sin)
    error = None if c.device.type == "meta" else c.compare(got, run())
    return Work(run, error, c.tolerance, "the error is between ours and theirs, at the full shape")


def cases(c: Context, exactly: bool = True, repeats: int = 30, budget: float | None = None) -> Iterator[Case]:
    """The parts, the block and diffusers' block; `exactly`: against float32 on a CPU, which takes a minute."""
    t, element = c.variant.transformer, c.dtype.itemsize
    dim, tokens = t.inner_dim, c.batch * c.tokens
    plane = float(tokens * dim * element)  # one [B, S, C]
    attention = 4.0 * c.batch * c.tokens**2 * dim
    faces = 4.0 * c.batch * c.shape.video_tokens * dim * t.cross_attn_num_heads * t.LFE_num_querie
    products, weights = 2.0 * tokens * dim**2, float(dim**2 * element)

    def parts() -> Parts:
        return c.once("parts", lambda: Parts(c))

    def make(part: str) -> Work:
        run: Callable[[], Any] = getattr(parts(), part)
        if not exactly:
            return Work(run, note="checked elsewhere: the kernels one by one, the block against diffusers'")
        return Work(run, exact(c, part), c.tolerance, "checked against float32 on a CPU, one latent frame")

    def projection(name: str, wide: bool = False) -> Work:
        p, x = parts(), parts().wide() if wide else parts().hidden
        right = F.linear(x[:, :64].double(), p.w[f"{name}.weight"].double(), p.w[f"{name}.bias"].double())
        return Work(lambda: p.linear(name, x), c.compare(p.linear(name, x)[:, :64], right), c.tolerance)

    rows: list[tuple[str, Callable[[], Work], float, float]] = [
        ("modulated norm", lambda: make("norm"), 0, 2 * plane),
        ("qkv", lambda: projection("attn1.to_qkv"), 3 * products, 4 * plane + 3 * weights),
        ("qk norm and rotary", lambda: make("rotated"), 0, 4 * plane),
        ("attention", lambda: make("attention"), attention, 4 * plane),
        ("out", lambda: projection("attn1.to_out.0"), products, 2 * plane + weights),
        ("gated residual and modulated norm", lambda: make("gated_norm"), 0, 4 * plane),
        ("ff up", lambda: projection("ff.net.0.proj"), 4 * products, 5 * plane + 4 * weights),
        ("gelu", lambda: Work(parts().gelu, note="PyTorch's own"), 0, 8 * plane),
        ("ff down", lambda: projection("ff.net.2", wide=True), 4 * products, 5 * plane + 4 * weights),
        ("gated residual", lambda: make("residual"), 0, 3 * plane),
        ("block", lambda: make("block"), attention + 12 * products, 2 * plane + 12 * weights),
    ]
    if t.is_train_face:
        rows += [
            ("face attention", lambda: make("face"), faces, 2 * plane),
            ("block and face", lambda: make("block_and_face"), attention + 12 * products + faces, 2 * plane),
        ]
    for name, prepare, flops, moved in rows:
        yield Case(name, prepare, flops, moved, repeats=repeats, budget=budget)
    yield Case(
        "block, diffusers", lambda: theirs(c), attention + 12 * products, 2 * plane + 12 * weights, repeats,
        foreign=True, budget=budget,
    )  # fmt: skip
