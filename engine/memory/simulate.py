"""The order of copies and calls of one stage, replayed with given speeds: when each call can start, and who waits.

One copy engine works through the copies in the order of execution; one compute stream through the calls. A call waits
for its weights; a copy into a buffer that is used again waits for the last call that read it. This is the order that
engine/weights/prefetch.py, and of weights from other devices gather.py, issue on a device.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from .allocator import part_bytes
from .costs import Key, Unit


@dataclass(frozen=True)
class Machine:
    """How fast a machine is assumed to be.

    Attributes:
        flops: sustained per second, of matrix products in half precision.
        link: bytes per second from pinned host memory to the device.
        sources: where the figures are from.
        wire: bytes per second from one device to another, in each direction; None for that of `link`.
    """

    name: str
    flops: float
    link: float
    sources: str
    wire: float | None = None


TFLOP, GB = 1e12, 1e9
# Measured by others where somebody did: large products of PyTorch in bf16, copies from pinned memory by nvbandwidth;
# elsewhere what data sheets give, dense and with 32-bit accumulation, which no program reaches. No stage runs at the
# rate of its largest product throughout, so that times from either are lower bounds.
MAMF = "matmul in bf16, ml-engineering's table of achievable FLOPS, August 2026"
MATMUL = "matmul in bf16, torch-performance-test-data, database.md, January 2026"
PCIE_5 = "PCIe 5.0 x16: 55.6 GB/s by nvbandwidth, NVIDIA's blog post about it"
PCIE_4 = "PCIe 4.0 x16: 26.0 GB/s by nvbandwidth, its README"
NVLINK_4 = "NVLink 4: 450 GB/s in each direction, NVIDIA H100 data sheet"
NVLINK_3 = "NVLink 3: 300 GB/s in each direction, NVIDIA A100 data sheet"
MACHINES: Mapping[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine(
            "h200", 790 * TFLOP, 55.6 * GB, f"790 TFLOP/s measured in bf16 on an H200; {PCIE_5}; {NVLINK_4}", 450 * GB
        ),
        # Before h100, whose name is in this one's too.
        Machine("h100pcie", 496 * TFLOP, 55.6 * GB, f"{MATMUL}: 496 TFLOP/s; {PCIE_5}"),
        Machine("h100", 794 * TFLOP, 55.6 * GB, f"{MAMF}: 794 TFLOP/s, SXM; {PCIE_5}; {NVLINK_4}", 450 * GB),
        Machine("a100", 271 * TFLOP, 26 * GB, f"{MAMF}: 271 TFLOP/s, SXM (PCIe: 253); {PCIE_4}; {NVLINK_3}", 300 * GB),
        Machine(
            "l40s", 269 * TFLOP, 26 * GB,
            f"{MATMUL}: 269 TFLOP/s (NVIDIA's data sheet: 362, which its 350 W do not allow); {PCIE_4}",
        ),
        Machine(
            "rtx5090", 236 * TFLOP, 56.3 * GB,
            f"{MATMUL}: 222 to 242 TFLOP/s on four (NVIDIA's whitepaper: 209.5 at its boost clock, which they exceed); "
            "PCIe 5.0 x16: 56.3 GB/s by nvbandwidth, tinygrad/open-gpu-kernel-modules issue 29",
        ),
        Machine(
            "rtx4090", 165.2 * TFLOP, 26.3 * GB,
            "NVIDIA Ada architecture whitepaper: 165.2 TFLOP/s fp16 with fp32 accumulation; "
            "PCIe 4.0 x16: 26.3 GB/s by nvbandwidth, NVIDIA/nvbandwidth issue 15",
        ),
        Machine(
            "rtx3090", 71 * TFLOP, 31.5 * GB,
            "NVIDIA Ampere GA102 whitepaper: 71 TFLOP/s fp16 with fp32 accumulation; PCIe 4.0 x16, 31.5 GB/s",
        ),
        Machine(
            "t4", 65 * TFLOP, 15.75 * GB,
            "NVIDIA T4 datasheet: 65 TFLOP/s fp16; PCIe 3.0 x16, 15.75 GB/s; it has no bf16",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Replay:
    """A stage in seconds.

    Attributes:
        seconds: from the first copy to the end of the last call.
        stall: of the first pass, in which everything that is resident arrives, and of each later one.
        bytes: copied in all.
    """

    seconds: float
    stall: tuple[float, float]
    bytes: int


def spread(units: Sequence[Unit], streamed: int) -> frozenset[Key]:
    """Which units stream when `streamed` of them do: spread evenly, so that each copy has calls to hide behind."""
    count = len(units)
    return frozenset(units[i * count // streamed].key for i in range(streamed)) if streamed else frozenset()


def replay(
    units: Sequence[Unit],
    streamed: frozenset[Key],
    buffers: int,
    passes: int,
    machine: Machine,
    *,
    fixed: int = 0,
    flops: float = 0.0,
    samples: float = 1,
    sent: int = 0,
    holders: int = 1,
) -> Replay:
    """Replay a stage.

    Args:
        units: in the order of execution.
        streamed: those that are copied in every pass, through `buffers` buffers; the others in the first pass.
        passes: how often the units are gone through.
        fixed: bytes that are copied before the first call.
        flops: of a pass, in calls that stream nothing; they come before the units.
        samples: what all flops are multiplied with.
        sent: bytes that pass between devices in a pass, which nothing hides.
        holders: devices of which each reads a part of what streams once, which the others get when a pass comes to it,
            and no earlier than that pass; 1 where it comes from the host.
    """
    wire, missing = machine.wire or machine.link, (holders - 1) / holders
    seconds = [samples * unit.flops / machine.flops for unit in units]
    free = [0.0] * max(1, buffers)  # when the last reader of each buffer ends, in the order of use
    moved, arrived = fixed, dict[Key, float]()
    for unit in units if holders > 1 else ():  # parts and what is resident come before anything else
        moved += part_bytes(unit.bytes, holders) if unit.key in streamed else unit.bytes
        arrived[unit.key] = moved / machine.link
    copied, now, turn = moved / machine.link, fixed / machine.link, 0
    stalls: list[float] = []
    simulated = min(passes, 3)
    ends = []
    for index in range(simulated):
        stall = now if index == 0 else 0.0
        now += samples * (flops / machine.flops + sent / wire)
        begun = now
        for unit, length in zip(units, seconds, strict=True):
            ready = 0.0
            if unit.key in streamed:
                slot = turn % len(free)
                if holders > 1:
                    ready = copied = max(copied, free[slot], begun) + missing * unit.bytes / wire
                else:
                    ready = copied = max(copied, free[slot]) + unit.bytes / machine.link
                    moved += unit.bytes
            elif index == 0 and holders > 1:
                ready = arrived[unit.key]
            elif index == 0:
                ready = copied = copied + unit.bytes / machine.link
                moved += unit.bytes
            stall += max(0.0, ready - now)
            now = max(now, ready) + length
            if unit.key in streamed:
                free[slot] = now
                turn += 1
        stalls.append(stall)
        ends.append(now)
    again = sum(unit.bytes for unit in units if unit.key in streamed) if holders == 1 else 0
    later = ends[-1] - ends[-2] if simulated > 1 else 0.0
    return Replay(
        ends[-1] + (passes - simulated) * later,
        (stalls[0], stalls[-1] if simulated > 1 else 0.0),
        moved + (passes - simulated) * again,
    )


# For a GPU that has no row of its own: an assumption, which orders candidates and predicts nothing well.
UNKNOWN = Machine("unknown", 100e12, 12e9, "assumed: 100 TFLOP/s, 12 GB/s")


def machine_named(gpu: str) -> Machine:
    """The row of MACHINES for a GPU by the driver's name, such as "NVIDIA GeForce RTX 4090"; UNKNOWN without one."""
    words = re.split(r"[\s-]+", gpu.lower())
    if {"laptop", "mig"}.intersection(words):  # another chip of the same name, or a part of one
        return UNKNOWN
    names = {*words, *(left + right for left, right in pairwise(words))}  # "rtx 4090" is two words
    row = next((row for key, row in MACHINES.items() if key in names), UNKNOWN)
    # These cards have bridges between two or four at most, or none.
    return replace(row, wire=None) if {"pcie", "nvl"}.intersection(words) else row
