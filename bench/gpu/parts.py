"""What a block is made of: products of matrices and copies, against which all is held; joint attention by every
implementation; the kernels, and the block as the engine's graph runs it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from consisid.engine.memory.tracing import count_flops
from consisid.kernels import joint_attention
from consisid.kernels.attention_others import BACKENDS, NAMES, PACKAGES, by_package, by_torch, load_package, reference
from consisid.kernels.dispatch import default_config
from consisid.kernels.joint_attention import by_kernel, describe
from consisid.kernels.tools import cases as kernel_cases

from ..core import peak_rates
from .cases import Case, Context, Unavailable, Work


def product(c: Context, m: int, n: int, k: int, dtype: torch.dtype) -> Work:
    """[m, k] x [k, n]; the check is against float64 on a few rows."""
    run, a, b = peak_rates.product(m, n, k, c.device, dtype)
    return Work(run, c.compare(run()[:16], a[:16].double() @ b.double()), 1e-2 if dtype.itemsize == 2 else 1e-3)


def copy(c: Context, size: int) -> Work:
    run, source = peak_rates.copy(size, c.device)
    return Work(run, c.compare(run(), source), 0.0)


def across(c: Context, size: int, to_device: bool) -> Work:
    """Pinned host memory to the device, or back; nothing else is on the bus."""
    c.need_gpu("a copy between host and device")
    here = c.randn(size // 4, dtype=torch.float32)
    there = torch.empty(size // 4, dtype=torch.float32, pin_memory=c.gpu) if c.gpu else torch.empty_like(here)
    source, target = (there, here) if to_device else (here, there)
    source.copy_(c.randn(size // 4, seed=1, dtype=torch.float32))
    target.zero_()
    target.copy_(source, non_blocking=True)
    if c.gpu:
        torch.cuda.synchronize(c.device)
    error = None if c.device.type == "meta" else c.compare(here, there.to(c.device))
    return Work(lambda: target.copy_(source, non_blocking=True), error, 0.0)


def products(c: Context) -> Iterator[Case]:
    """Those of a block."""
    dim, rows = c.variant.transformer.inner_dim, c.batch * c.tokens
    for name, k, n in (("qkv", dim, 3 * dim), ("out", dim, dim), ("ff up", dim, 4 * dim), ("ff down", 4 * dim, dim)):
        make = partial(product, c, rows, n, k, c.dtype)
        yield Case(f"product {name} [{rows}, {k}] x [{k}, {n}]", make, 2.0 * rows * k * n)


def ceilings(c: Context) -> Iterator[Case]:
    small = c.device.type == "cpu"
    n, size, bus = (256, 2**22, 2**22) if small else (8192, 2**31, 2**29)
    for dtype in (c.dtype,) if small else (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield Case(f"product {name} {n}^3", partial(product, c, n, n, n, dtype), 2.0 * n**3)
    yield from products(c)
    yield Case(f"copy {size / 2**20:.0f} MiB on the device", partial(copy, c, size), bytes=2.0 * size)
    for name, direction in (("host to device", True), ("device to host", False)):
        yield Case(f"copy {bus / 2**20:.0f} MiB {name}", partial(across, c, bus, direction), bytes=float(bus))


Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # q, k, v [B, S, H, D], scale -> [B, S, H, D]
Prepare = Callable[[Context], tuple[Attention, str]]
"""Makes a call ready, with a note; on the meta device PyTorch's own stands for what needs data."""
PHOTO = {"H": 640, "W": 640}  # pixels of a photo
CHECKED = 128  # queries whose result is compared with float32


def tensors(c: Context) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, S, H, D], with the strides they have in the engine: q and k apart, v inside the fused buffer."""
    t = c.variant.transformer
    size = (c.batch, c.tokens, t.num_attention_heads, t.attention_head_dim)
    qkv = c.randn(c.batch, c.tokens, 3, *size[2:], seed=2)
    return c.randn(*size, seed=0), c.randn(*size, seed=1), qkv[:, :, 2]


def on_gpu(call: Attention, what: str, c: Context) -> tuple[Attention, str]:
    c.need_gpu(what)
    return (reference if c.device.type == "meta" else call), ""


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
    t = c.variant.transformer
    if c.device.type == "meta":
        return joint_attention, "PyTorch's choice"
    shape = (c.batch, c.tokens, t.num_attention_heads, t.attention_head_dim)
    return joint_attention, describe(c.device, shape, c.dtype)


def by_default(c: Context) -> tuple[Attention, str]:
    """Our kernel with its default options, whatever the table of choices says."""
    c.need_gpu("our Triton kernel")
    if c.device.type == "meta":
        return reference, ""
    config = default_config(torch.cuda.get_device_capability(c.device), c.dtype)
    return partial(by_kernel, config=config), str(config)


IMPLEMENTATIONS: Mapping[str, Prepare] = {
    "sdpa, PyTorch's choice": lambda c: (reference, ""),
    **{f"sdpa {name}": partial(on_gpu, partial(by_torch, backend=name), "this backend") for name in BACKENDS},
    **{NAMES[name]: partial(package, name) for name in PACKAGES},
    "ours as dispatched": dispatched,
    "ours, Triton kernel": by_default,
}


def attend(c: Context, prepare: Prepare) -> Work:
    """The check is the first queries against float32."""
    call, note = prepare(c)
    q, k, v = c.once("qkv", lambda: tensors(c))
    scale = q.shape[-1] ** -0.5
    right = c.once("right", lambda: reference(q[:, :CHECKED].float(), k.float(), v.float(), scale))
    run = partial(call, q, k, v, scale)
    return Work(run, c.compare(run()[:, :CHECKED], right), c.tolerance, note)


def attention(c: Context) -> Iterator[Case]:
    t = c.variant.transformer
    flops = 4.0 * c.batch * t.num_attention_heads * c.tokens**2 * t.attention_head_dim
    moved = 4.0 * c.batch * c.tokens * t.inner_dim * c.dtype.itemsize
    for name, prepare in IMPLEMENTATIONS.items():
        yield Case(name, partial(attend, c, prepare), flops, moved, foreign=not name.startswith("ours"))


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


def graph(c: Context, name: str) -> Work:
    """A call of a graph as the engine makes it, with the weights of its first layer and random inputs."""
    made, networks = c.weights.table[name], c.weights.networks([name], layers=1)
    inputs = [spec.example(PHOTO | {"B": c.batch}, made.dtype(c.dtype), c.device) for spec in made.specs().values()]
    return Work(partial(networks, name, *inputs), note="the tests compare it with diffusers")


def graphs(c: Context, names: Sequence[str] = ("block", "face")) -> Iterator[Case]:
    for name in names:
        if name in c.weights.table:
            flops = count_flops(c.weights.table[name], PHOTO | {"B": c.batch}, torch.float32)
            yield Case(f"graph {name}", partial(graph, c, name), flops, repeats=10, budget=0.5, limit=30)


def block(c: Context) -> Iterator[Case]:
    yield from (case for case in kernels(c) if "group_norm" not in case.name)  # which is the decoder's
    yield from products(c)
    yield from graphs(c)
