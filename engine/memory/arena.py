"""Memory for what comes and goes while graphs run: one segment of a GPU, reserved when a stage begins.

PyTorch's allocator would cut up whatever is free, and after some calls the pieces are too small for the largest tensors
although together they suffice. In a pool of its own that begins as one free segment, of the size that a replay of the
requests has found (allocator.arena_bytes), every request finds its place, at the same address in every step.
"""

from types import TracebackType

import torch


class Arena:
    """A pool of a GPU's memory that begins as one free segment; inside the block, allocations are made there.

    Blocks may be nested. A tensor that outlives the arena keeps its segment: what is kept has to be copied out.

    Args:
        size: bytes.
    """

    def __init__(self, device: torch.device, size: int):
        self.device, self.depth = device, 0
        self._pool = torch.cuda.MemPool()
        with self:
            torch.empty(size, dtype=torch.uint8, device=device)  # given back at once, to the pool

    def __enter__(self) -> None:
        if self.depth == 0:
            self._using = torch.cuda.use_mem_pool(self._pool, self.device)
            self._using.__enter__()
        self.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.depth -= 1
        if self.depth == 0:
            self._using.__exit__(kind, error, trace)


def prepare_libraries(device: torch.device, dtype: torch.dtype) -> None:
    """Let cuBLAS reserve what it works in, which it keeps for good, before there is an arena that it would be in."""
    x = torch.zeros(64, 64, dtype=dtype, device=device)
    torch.mm(x, x)
    torch.nn.functional.linear(x, x, x[0])
