"""What a kernel has to do, counted from its shapes: the numbers that turn a time into a share of the hardware's limit.

Bytes are the least a kernel can move between the GPU and its memory: every input and output once. FLOPs count a
multiply and an add as two and an exponential, square root or division as one; joint_attention, whose rate is compared
with published ones, counts its matrix products only.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """FLOPs and bytes of one call."""

    flops: int
    bytes: int

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The least time on hardware with these two measured rates, when arithmetic and traffic overlap perfectly."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)

    def limiter(self, flops_per_second: float, bytes_per_second: float) -> str:
        """What sets that time: "arithmetic" or "memory"."""
        return "arithmetic" if self.flops / flops_per_second > self.bytes / bytes_per_second else "memory"
