"""What the hardware gives: matrix products, large and at the model's sizes; copies on the device and across the bus."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..core import peak_rates
from .cases import Case, Context, Unavailable, Work


def product(c: Context, m: int, n: int, k: int, dtype: torch.dtype) -> Work:
    """[m, k] x [k, n]; the check is against float64 on a few rows."""
    run, a, b = peak_rates.product(m, n, k, c.device, dtype)
    return Work(run, c.compare(run()[:16], a[:16].double() @ b.double()), 1e-2 if dtype.itemsize == 2 else 1e-3)


def fp8(c: Context, n: int) -> Work:
    """A float8_e4m3 product with bfloat16 output and one scale per tensor (torch._scaled_mm)."""
    if c.gpu and torch.cuda.get_device_capability(c.device) < (8, 9):
        raise Unavailable("fp8 products need compute capability 8.9")
    c.need_gpu("an fp8 product")
    a, b = (c.randn(n, n, seed=i, dtype=torch.bfloat16).to(torch.float8_e4m3fn) for i in range(2))
    one = torch.ones((), device=c.device)

    def run() -> Tensor:
        return torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    right = a[:16].to(torch.float32).double() @ b.t().to(torch.float32).double()
    return Work(run, c.compare(run()[:16], right), 1e-2, "scales are one; the inputs are what fp8 made of them")


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


def cases(c: Context) -> Iterator[Case]:
    small = c.device.type == "cpu"
    n, size, bus = (256, 2**22, 2**22) if small else (8192, 2**31, 2**29)
    for dtype in (c.dtype,) if small else (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield Case(f"product {name} {n}^3", partial(product, c, n, n, n, dtype), 2.0 * n**3)
    yield Case(f"product fp8 {n}^3", partial(fp8, c, n), 2.0 * n**3)
    yield from products(c)
    yield Case(f"copy {size / 2**20:.0f} MiB on the device", partial(copy, c, size), bytes=2.0 * size)
    for name, direction in (("host to device", True), ("device to host", False)):
        yield Case(f"copy {bus / 2**20:.0f} MiB {name}", partial(across, c, bus, direction), bytes=float(bus))
