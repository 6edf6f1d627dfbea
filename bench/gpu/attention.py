"""Joint attention at the shape of a step: every backend of PyTorch, FlexAttention, FlashAttention 3, ours."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from consisid import kernels
from consisid.kernels import attention_others
from consisid.kernels.attention_others import BACKENDS, NAMES, PACKAGES, load_package
from consisid.kernels.dispatch import Config, default_config
from consisid.kernels.joint_attention import by_kernel

from .cases import Case, Context, Unavailable, Work

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v [B, S, H, D] -> [B, S, H, D]
CHECKED = 128  # queries whose result is compared with float32


def tensors(c: Context) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, S, H, D], with the strides they have in the engine: q and k apart, v inside the fused buffer."""
    t = c.variant.transformer
    size = (c.batch, c.tokens, t.num_attention_heads, t.attention_head_dim)
    qkv = c.randn(c.batch, c.tokens, 3, *size[2:], seed=2)
    return c.randn(*size, seed=0), c.randn(*size, seed=1), qkv[:, :, 2]


def right(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first queries in float32, head by head so that the scores fit."""
    heads = []
    for head in range(q.shape[2]):
        a, b, x = (y[:, :, head].float() for y in (q[:, :CHECKED], k, v))
        heads.append((a @ b.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1) @ x)
    return torch.stack(heads, dim=2)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def by_backend(backend: SDPBackend) -> Attention:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(q, k, v)

    return run


def flex(c: Context) -> Attention:
    """FlexAttention, compiled: uncompiled it writes out the scores."""
    c.need_gpu("FlexAttention, compiled,")
    from torch.nn.attention.flex_attention import flex_attention

    if c.device.type == "meta":
        return sdpa
    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compiled(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    return run


def by_package(c: Context, name: str) -> Attention:
    """FlashAttention 3 or 4 by its own package, which the extra fa3-fwd or flash-attn-4 installs."""
    c.need_gpu(NAMES[name])
    try:
        load_package(name)
    except ImportError as error:
        raise Unavailable(str(error)) from None
    return lambda q, k, v: attention_others.by_package(q, k, v, q.shape[-1] ** -0.5, name)


def by_xformers(c: Context, name: str) -> Attention:
    """An operator of xformers: FlashAttention 3 lies in `flash3`, 2 in `flash`."""
    c.need_gpu("xformers")
    try:
        ops = import_module("xformers.ops")
        operator = (import_module(f"xformers.ops.fmha.{name}").FwOp, None)
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"xformers.ops.fmha.{name} cannot be imported ({error})") from None
    return lambda q, k, v: ops.memory_efficient_attention(q, k, v, op=operator)


def ours(c: Context) -> tuple[Attention, str]:
    """What the engine calls, and which implementation it says that it chose."""
    describe = getattr(kernels, "describe", None)
    t = c.variant.transformer
    shape = (c.batch, c.tokens, t.num_attention_heads, t.attention_head_dim)
    note = describe(c.device, shape, c.dtype) if describe and c.device.type != "meta" else "PyTorch's choice"
    return (lambda q, k, v: kernels.joint_attention(q, k, v, q.shape[-1] ** -0.5)), note


def by_config(c: Context, config: Config | None = None) -> tuple[Attention, str]:
    """Our Triton kernel with these options, or with its default ones, whatever the table of choices says."""
    c.need_gpu("our Triton kernel")
    if c.device.type == "meta":
        return sdpa, ""
    chosen = config or default_config(torch.cuda.get_device_capability(c.device), c.dtype)
    return (lambda q, k, v: by_kernel(q, k, v, q.shape[-1] ** -0.5, chosen)), str(chosen)


def work(c: Context, make: Callable[[], Attention | tuple[Attention, str]]) -> Work:
    made = make()
    attention, note = made if isinstance(made, tuple) else (made, "")
    q, k, v = c.once("qkv", lambda: tensors(c))
    expected = c.once("right", lambda: right(q, k, v) if c.device.type != "meta" else None)
    error = None if expected is None else c.compare(attention(q, k, v)[:, :CHECKED], expected)
    return Work(lambda: attention(q, k, v), error, c.tolerance, note)


def cases(c: Context) -> Iterator[Case]:
    t = c.variant.transformer
    flops = 4.0 * c.batch * t.num_attention_heads * c.tokens**2 * t.attention_head_dim
    bytes_ = 4.0 * c.batch * c.tokens * t.inner_dim * c.dtype.itemsize

    def on_gpu(backend: SDPBackend) -> Attention:
        c.need_gpu("this backend")
        return sdpa if c.device.type == "meta" else by_backend(backend)

    rows: dict[str, Callable[[], Any]] = {"sdpa, PyTorch's choice": lambda: sdpa}
    rows |= {f"sdpa {name}": partial(on_gpu, b) for name, b in BACKENDS.items()}
    rows |= {
        "FlexAttention compiled": lambda: flex(c),
        **{NAMES[name]: partial(by_package, c, name) for name in PACKAGES},
        "xformers FlashAttention 3": lambda: by_xformers(c, "flash3"),
        "xformers FlashAttention 2": lambda: by_xformers(c, "flash"),
        "ours as dispatched": lambda: ours(c),
        "ours, Triton kernel": lambda: by_config(c),
    }
    for name, make in rows.items():
        yield Case(name, partial(work, c, make), flops, bytes_, foreign=not name.startswith("ours"))
