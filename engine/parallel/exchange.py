"""Sending tensors between the processes of several devices: everything goes through `swapping`, which counts."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

TRANSPORTS = ("nccl", "gloo")
"""What of torch.distributed tensors are sent by."""

Parcel = tuple[Tensor, int]
"""A tensor, and the rank that it goes to or comes from."""


@dataclass
class Exchange:
    """This process among those of a group that torch.distributed has made.

    Tensors travel as bytes: no number changes on the way, and every dtype can.

    Attributes:
        transport: of TRANSPORTS; by gloo what is on GPUs passes through the host.
        sent: bytes that this rank has sent, by what they were for.
        count: exchanges that this rank has begun, which tells who lags behind.
        doing: what the present one is for, None between two.
        beside: a group for what passes while other exchanges do; its name and its connections are its own.
    """

    rank: int
    size: int
    device: torch.device
    timeout: timedelta
    transport: str = "gloo"
    sent: Counter[str] = field(default_factory=Counter)
    count: int = 0
    doing: str | None = None
    beside: dist.ProcessGroup | None = None

    @property
    def through_host(self) -> bool:
        """Whether tensors are copied to the host to be sent."""
        return self.transport == "gloo" and self.device.type == "cuda"

    def swap(self, what: str, gives: Sequence[Parcel] = (), takes: Sequence[Parcel] = (), beside: bool = False) -> None:
        """`swapping` with nothing to compute meanwhile."""
        with self.swapping(what, gives, takes, beside):
            pass

    @contextmanager
    def swapping(
        self, what: str, gives: Sequence[Parcel] = (), takes: Sequence[Parcel] = (), beside: bool = False
    ) -> Iterator[None]:
        """Send and receive at once, while the block inside computes something else; between two ranks tensors arrive in
        the order in which they were sent.

        Args:
            what: they are for.
            gives: contiguous tensors to other ranks.
            takes: contiguous tensors to be filled by other ranks.
            beside: in the other group.

        Raises:
            RuntimeError: a rank has gone, or not answered in time.
        """
        if not gives and not takes:
            yield
            return
        self.count, self.doing = self.count + 1, what
        self.sent[what] += sum(tensor.nbytes for tensor, _ in gives)
        sources = [(self._bytes(tensor.cpu() if self.through_host else tensor), rank) for tensor, rank in gives]
        places = [(torch.empty_like(x, device="cpu") if self.through_host else x, rank) for x, rank in takes]
        group = self.beside if beside else None
        work = [dist.P2POp(dist.isend, tensor, rank, group) for tensor, rank in sources]
        work += [dist.P2POp(dist.irecv, self._bytes(place), rank, group) for place, rank in places]
        sending, self.doing = dist.batch_isend_irecv(work), None
        yield
        self.doing = what
        for each in sending:
            each.wait(self.timeout) if self.transport == "gloo" else each.wait()
        if self.through_host:
            for (tensor, _), (place, _) in zip(takes, places, strict=True):
                tensor.copy_(place)
        self.doing = None

    def gather(self, part: Tensor, buffer: Tensor) -> None:
        """The parts of all ranks, uint8 [n] each, into a buffer uint8 [n * ranks]: `part` is this rank's."""
        places = buffer.view(self.size, -1)
        places[self.rank].copy_(part)
        others = [rank for rank in range(self.size) if rank != self.rank]
        gives, takes = [(part, rank) for rank in others], [(places[rank], rank) for rank in others]
        self.swap("weights", gives, takes, beside=True)

    def settle(self) -> None:
        """Wait until everything has arrived: what NCCL does is queued on the device, and when a rank is lost it ends
        there with whatever it has."""
        if self.transport == "nccl":
            self.doing = "device"
            torch.cuda.synchronize(self.device)
            self.doing = None

    @staticmethod
    def _bytes(tensor: Tensor) -> Tensor:
        assert tensor.is_contiguous()
        return tensor.view(-1).view(torch.uint8)

    def share(self, what: str, tensors: Sequence[Tensor]) -> None:
        """From rank 0 to all others; rank 0 gives them, the others have them filled."""
        tensors = [tensor for tensor in tensors if tensor.numel()]
        if self.rank:
            self.swap(what, takes=[(tensor, 0) for tensor in tensors])
        else:
            self.swap(what, gives=[(tensor, rank) for rank in range(1, self.size) for tensor in tensors])


def join(store: dist.Store, exchange: Exchange) -> None:
    """Make the group of all ranks."""
    # NCCL ends the process of whoever waits longer than this; the crew notices before.
    wait = exchange.timeout * (4 if exchange.transport == "nccl" else 1)
    hook, group = sys.excepthook, dist.PrefixStore("group", store)
    dist.init_process_group(
        exchange.transport, store=group, rank=exchange.rank, world_size=exchange.size, timeout=wait
    )  # fmt: skip
    try:
        exchange.beside = dist.new_group(backend=exchange.transport, timeout=wait)
    except BaseException:
        dist.destroy_process_group()
        raise
    sys.excepthook = hook  # PyTorch puts one there that writes the rank before each line
