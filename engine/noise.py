"""Where noise comes from: always the generator's own device, so that a seed means the same on every machine."""

import torch
from torch import Tensor

from .errors import InputError, shown
from .shapes import whole

SEEDS = -(2**63), 2**64 - 1  # what PyTorch takes


def draw(shape: torch.Size | tuple[int, ...], generator: torch.Generator | list[torch.Generator] | None,
         device: torch.device, dtype: torch.dtype) -> Tensor:  # fmt: skip
    """Standard normal noise, the numbers that diffusers' randn_tensor draws; a list has one generator per sample."""
    if isinstance(generator, list):
        return torch.cat([draw((1, *shape[1:]), g, device, dtype) for g in generator])
    source = generator.device if generator is not None else torch.device("cpu")
    return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(device)


def generators(
    seed: int | None, generator: torch.Generator | list[torch.Generator] | None, batch: int
) -> torch.Generator | list[torch.Generator]:
    """The caller's generator, or a new one on the CPU; without a seed it starts from the system's entropy."""
    if generator is None:
        fresh = torch.Generator()
        if seed is None:
            fresh.seed()
        else:
            number = whole("seed", seed)
            if not SEEDS[0] <= number <= SEEDS[1]:
                raise InputError(f"seed={shown(seed)} is not from {SEEDS[0]} to {SEEDS[1]}.")
            fresh.manual_seed(number)
        return fresh
    if seed is not None:
        raise InputError("Both a seed and a generator were given; give one of them.")
    if not all(isinstance(g, torch.Generator) for g in (generator if isinstance(generator, list) else [generator])):
        raise InputError(f"generator={shown(generator)} is neither a torch.Generator nor a list of them.")
    if isinstance(generator, list) and len(generator) != batch:
        raise InputError(f"{len(generator)} generators were given for {batch} videos; give one each, or a single one.")
    return generator
