"""Causal convolutions of the CogVideoX autoencoder, and what they hand from one chunk of time to the next."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 2**31 - 1  # elements; convolution libraries index with 32 bits


class Tape:
    """The frames that causal convolutions hand from chunk to chunk, in the order in which the convolutions run.

    Args:
        caches: what the chunk before handed on; None for a first chunk, which repeats its first frame instead.
    """

    def __init__(self, caches: Sequence[Tensor] | None = None):
        self._old = None if caches is None else iter(caches)
        self.new: list[Tensor] = []

    def lead(self, x: Tensor, frames: int) -> Tensor:
        """x [B, C, F, H, W] -> [B, C, frames + F, H, W], and its last `frames` onto the tape."""
        before = x[:, :, :1].expand(-1, -1, frames, -1, -1) if self._old is None else next(self._old)
        x = torch.cat((before, x), dim=2)
        self.new.append(x[:, :, -frames:].clone())  # a copy, so that the whole does not stay alive
        return x


def convolve(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """conv(x), a few frames at a time where x or the result would have more than 2^31 elements."""
    lead = conv.kernel_size[0] - 1
    frames, (height, width) = x.shape[2] - lead, x.shape[3:]
    frame = x.shape[0] * max(conv.in_channels, conv.out_channels) * height * width
    most = max(1, LARGEST // frame - lead)
    if frames <= most:
        return conv(x)
    return torch.cat([conv(x[:, :, i : i + most + lead]) for i in range(0, frames, most)], dim=2)


class CausalConv(nn.Module):
    """A 3x3x3 convolution over [B, C, F, H, W] that sees the two frames before a frame, and none after it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=(0, 1, 1))

    @property
    def lead(self) -> int:
        """Frames before a frame that it reads."""
        return self.conv.kernel_size[0] - 1

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        return convolve(self.conv, tape.lead(x, self.lead))

    def still(self, x: Tensor) -> Tensor:
        """The same for a first and only frame [B, C, H, W], which stands in for those before it."""
        weight = self.conv.weight.float().sum(2).to(x.dtype)
        return F.conv2d(x, weight, self.conv.bias, padding=1)
