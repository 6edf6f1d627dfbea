"""Which device a name means, and the current device of CUDA while an engine uses its own."""

from contextlib import AbstractContextManager, nullcontext, suppress

import torch

from ..errors import InputError, shown


def check_device(name: str | torch.device) -> torch.device:
    """A device that exists. A GPU always has its index: "cuda" alone is the current device of the caller's thread, and
    functions of torch.cuda that set limits or read properties want to be told which. The CPU has none: it is one.

    Raises:
        InputError: no device of a kind that engines run on, or a GPU that this machine does not have.
    """
    device = None
    if isinstance(name, str | torch.device):
        with suppress(RuntimeError):
            device = torch.device(name)
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device={shown(name)} is not a device; it is cpu, cuda or cuda:0, cuda:1, ...")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(f"device={name!r}: PyTorch sees no CUDA GPU on this machine; use a build for the CPU.")
    index, count = torch.cuda.current_device() if device.index is None else device.index, torch.cuda.device_count()
    if index >= count:
        seen = "one CUDA GPU, cuda:0" if count == 1 else f"{count} CUDA GPUs, cuda:0 to cuda:{count - 1}"
        raise InputError(f"device={name!r}: PyTorch sees {seen} on this machine.")
    return torch.device("cuda", index)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one inside the block: Triton launches there, and streams, events and allocations that
    name no device belong to it. Nothing for a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
