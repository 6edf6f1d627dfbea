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

from . import Case, Context, Unavailable, Work

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v [B, S, H, D] -> [B, S, H, D]
SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
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


def flash3(c: Context) -> Attention:
    """FlashAttention 3 by its own package."""
    c.need_gpu("FlashAttention 3")
    try:
        module = import_module("flash_attn_interface")
    except ImportError as error:
        raise Unavailable(f"flash_attn_interface cannot be imported ({error})") from None

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = module.flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # older versions return the log-sum-exp too

    return run


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


def ours_forced(c: Context) -> tuple[Attention, str]:
    """Our Triton kernel with its default options, whatever the table of choices says."""
    c.need_gpu("our Triton kernel")
    module = import_module("consisid.kernels.joint_attention")
    if not hasattr(module, "by_kernel"):
        raise Unavailable("this version of the package has no Triton kernel for joint attention")
    if c.device.type == "meta":
        return sdpa, ""
    tuning = import_module("consisid.kernels.tuning")
    config = tuning.default_config(torch.cuda.get_device_capability(c.device), c.dtype)
    return (lambda q, k, v: module.by_kernel(q, k, v, q.shape[-1] ** -0.5, config)), str(config)


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
    rows |= {f"sdpa {name}": partial(on_gpu, b) for name, b in SDPA.items()}
    rows |= {
        "FlexAttention compiled": lambda: flex(c),
        "FlashAttention 3": lambda: flash3(c),
        "xformers FlashAttention 3": lambda: by_xformers(c, "flash3"),
        "xformers FlashAttention 2": lambda: by_xformers(c, "flash"),
        "ours as dispatched": lambda: ours(c),
        "ours, Triton kernel": lambda: ours_forced(c),
    }
    for name, make in rows.items():
        yield Case(name, partial(work, c, make), flops, bytes_, foreign=not name.startswith("ours"))
