"""Joint attention at the shape of a step: every backend of PyTorch, FlexAttention, FlashAttention 3 and 4, ours."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from consisid import kernels
from consisid.kernels.attention_others import BACKENDS, NAMES, PACKAGES, by_package, by_torch, load_package, reference
from consisid.kernels.dispatch import Config, default_config
from consisid.kernels.joint_attention import by_kernel

from .cases import Case, Context, Unavailable, Work

Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # q, k, v [B, S, H, D], scale -> [B, S, H, D]
Prepare = Callable[[Context], tuple[Attention, str]]
"""Makes a call ready, with a note; on the meta device PyTorch's own stands for what needs data."""
CHECKED = 128  # queries whose result is compared with float32


def tensors(c: Context) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, S, H, D], with the strides they have in the engine: q and k apart, v inside the fused buffer."""
    t = c.variant.transformer
    size = (c.batch, c.tokens, t.num_attention_heads, t.attention_head_dim)
    qkv = c.randn(c.batch, c.tokens, 3, *size[2:], seed=2)
    return c.randn(*size, seed=0), c.randn(*size, seed=1), qkv[:, :, 2]


def in_float32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first queries, head by head so that the scores fit."""
    heads = []
    for head in range(q.shape[2]):
        a, b, x = (y[:, :, head].float() for y in (q[:, :CHECKED], k, v))
        heads.append((a @ b.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1) @ x)
    return torch.stack(heads, dim=2)


def on_gpu(call: Attention, what: str, c: Context) -> tuple[Attention, str]:
    c.need_gpu(what)
    return (reference if c.device.type == "meta" else call), ""


def flex(c: Context) -> tuple[Attention, str]:
    """FlexAttention, compiled: uncompiled it writes out the scores."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        out: Tensor = compiled(*(x.transpose(1, 2) for x in (q, k, v)), scale=scale)
        return out.transpose(1, 2)

    return on_gpu(run, "FlexAttention, compiled,", c)


def package(name: str, c: Context) -> tuple[Attention, str]:
    """FlashAttention 3 or 4 by its own package, which the extra fa3-fwd or flash-attn-4 installs."""
    c.need_gpu(NAMES[name])
    try:
        load_package(name)
    except ImportError as error:
        raise Unavailable(str(error)) from None
    return on_gpu(partial(by_package, name=name), NAMES[name], c)


def dispatched(c: Context) -> tuple[Attention, str]:
    """What the engine calls, and which implementation it says that it chose."""
    describe = getattr(kernels, "describe", None)
    t = c.variant.transformer
    shape = (c.batch, c.tokens, t.num_attention_heads, t.attention_head_dim)
    note = describe(c.device, shape, c.dtype) if describe and c.device.type != "meta" else "PyTorch's choice"
    return kernels.joint_attention, note


def with_config(config: Config | None, c: Context) -> tuple[Attention, str]:
    """Our kernel with these options, or with its default ones, whatever the table of choices says."""
    c.need_gpu("our Triton kernel")
    if c.device.type == "meta":
        return reference, ""
    chosen = config or default_config(torch.cuda.get_device_capability(c.device), c.dtype)
    return partial(by_kernel, config=chosen), str(chosen)


IMPLEMENTATIONS: Mapping[str, Prepare] = {
    "sdpa, PyTorch's choice": lambda c: (reference, ""),
    **{f"sdpa {name}": partial(on_gpu, partial(by_torch, backend=name), "this backend") for name in BACKENDS},
    "FlexAttention compiled": flex,
    **{NAMES[name]: partial(package, name) for name in PACKAGES},
    "ours as dispatched": dispatched,
    "ours, Triton kernel": partial(with_config, None),
}


def work(c: Context, prepare: Prepare) -> Work:
    attention, note = prepare(c)
    q, k, v = c.once("qkv", lambda: tensors(c))
    expected = c.once("right", lambda: in_float32(q, k, v) if c.device.type != "meta" else None)
    run = partial(attention, q, k, v, q.shape[-1] ** -0.5)
    return Work(run, None if expected is None else c.compare(run()[:, :CHECKED], expected), c.tolerance, note)


def cases(c: Context, others: Mapping[str, Prepare] = IMPLEMENTATIONS) -> Iterator[Case]:
    t = c.variant.transformer
    flops = 4.0 * c.batch * t.num_attention_heads * c.tokens**2 * t.attention_head_dim
    moved = 4.0 * c.batch * c.tokens * t.inner_dim * c.dtype.itemsize
    for name, prepare in others.items():
        yield Case(name, partial(work, c, prepare), flops, moved, foreign=not name.startswith("ours"))
