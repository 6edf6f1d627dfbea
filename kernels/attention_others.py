"""Attention that is not ours: the backends of PyTorch's scaled_dot_product_attention, and FlashAttention 3 and 4 from
their own packages (the extras fa3-fwd and flash-attn-4), which are imported when they are first asked for.
"""

import functools
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# Where packages have their function of q, k, v [B, S, H, D]; of FlashAttention 3 there are two builds.
PACKAGES = {"fa3": ("fa3_fwd_interface", "flash_attn_interface"), "fa4": ("flash_attn.cute",)}
NAMES = {"fa3": "FlashAttention 3", "fa4": "FlashAttention 4"}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
TRIED = 128  # tokens of the call that a package is tried with
TOLERANCE = 0.02  # of that call, whose values are averages of some hundred of size one: bfloat16 rounds them to 0.002


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k^T scale) v by PyTorch's scaled_dot_product_attention."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def by_torch(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str) -> Tensor:
    """One backend of scaled_dot_product_attention and no other: "flash", "cudnn" or "efficient"."""
    with sdpa_kernel(BACKENDS[backend]):
        return reference(q, k, v, scale)


def by_torch_preferring(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str) -> Tensor:
    """By a backend where it takes this input, otherwise by PyTorch's own choice.

    The switches are the process's, not this thread's: only the order changes, so that no call in another thread finds
    its backend switched off.
    """
    allowed = [BACKENDS[backend], *(other for other in _switches() if other != BACKENDS[backend])]
    with sdpa_kernel([each for each in allowed if _switches()[each]()], set_priority=True):
        return reference(q, k, v, scale)


def _switches() -> dict[SDPBackend, Callable[[], bool]]:
    """In PyTorch's order; what its user switched off stays off."""
    return {
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled,
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled,
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled,
        SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled,
    }


def load_package(name: str) -> Callable[..., Any]:
    """The function of "fa3" or "fa4" that takes q, k, v and softmax_scale.

    Raises:
        ImportError: it is not installed, or not for this PyTorch; the message has every reason.
    """
    reasons = []
    for place in PACKAGES[name]:
        try:
            attend: Callable[..., Any] = import_module(place).flash_attn_func
        except (ImportError, AttributeError, OSError) as error:
            reasons.append(f"{place} cannot be imported ({error})")
        else:
            return attend
    raise ImportError("; ".join(reasons))


def by_package(q: Tensor, k: Tensor, v: Tensor, scale: float, name: str) -> Tensor:
    """FlashAttention 3 or 4, "fa3" or "fa4", in bfloat16 or, where the package was built for it, float16."""
    out = load_package(name)(q, k, v, softmax_scale=scale)
    return out[0] if isinstance(out, tuple) else out  # some versions return the log-sum-exp too


@functools.cache
def package_works(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether "fa3" or "fa4" is installed and right on this GPU: one call tells.

    A package may be for another PyTorch or GPU, or lack a dtype, which shows when it is called; a warning says so.
    """
    try:
        load_package(name)
    except ImportError:
        return False
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn((3, 1, TRIED, 2, 64), generator=generator).to(device, dtype)
    try:
        with torch.no_grad():
            error = float((by_package(q, k, v, 0.125, name) - reference(q, k, v, 0.125)).abs().max())
    except Exception as reason:  # whatever a compiler or a launch of another project raises
        fault = next(iter(str(reason).splitlines()), type(reason).__name__)
    else:
        if error < TOLERANCE:
            return True
        fault = f"its error is {error:.2g}"
    where = f"on {device} in {str(dtype).removeprefix('torch.')}"
    warnings.warn(f"{NAMES[name]} is installed and does not work {where}: {fault}; it is left out.", stacklevel=2)
    return False


def usable(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether an implementation can be called on this GPU: installed, working, and not switched off in PyTorch."""
    if name in PACKAGES:
        return package_works(name, device, dtype)
    return name not in BACKENDS or _switches()[BACKENDS[name]]()
