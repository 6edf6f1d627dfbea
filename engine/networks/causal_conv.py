"""Causal convolutions of the CogVideoX autoencoder, and what they hand from one chunk of time to the next."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 2**31 - 1  # elements; convolution libraries index with 32 bits


class CausalCache:
    """The frames that causal convolutions hand from chunk to chunk, in the order in which the convolutions run.

    Args:
        caches: what the chunk before handed on; None for a first chunk, which repeats its first frame instead.
    """

    def __init__(self, caches: Sequence[Tensor] | None = None):
        self._old = None if caches is None else iter(caches)
        self.new: list[Tensor] = []

    def lead(self, x: Tensor, frames: int) -> Tensor:
        """x [B, C, F, H, W] -> [B, C, frames + F, H, W], and its last `frames` onto the tape."""
        before = self.before()
        x = torch.cat((x[:, :, :1].expand(-1, -1, frames, -1, -1) if before is None else before, x), dim=2)
        self.keep(x, frames)
        return x

    def before(self) -> Tensor | None:
        """What the next convolution reads of the chunk before; None where its first frame stands for that."""
        return None if self._old is None else next(self._old)

    def keep(self, x: Tensor, frames: int) -> None:
        """The last `frames` of x onto the tape."""
        self.new.append(x[:, :, -frames:].clone())  # a copy, so that the whole does not stay alive


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 0) -> Tensor:
    """A convolution of x [B, C, F, H, W] with stride 1, padded in height and width only; see `sum_of_conv2d`."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return sum_of_conv2d(x, weight, bias, padding)
    return F.conv3d(x, weight, bias, padding=(0, padding, padding))


def sum_of_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """The same as 2-d convolutions, one for each time step of the kernel.

    In float32 on a CPU PyTorch hands those to oneDNN, while a 3-d one of a small sample goes to slow_conv3d, which does
    without it.
    """
    batch, frames = x.shape[0], x.shape[2] - weight.shape[2] + 1
    images = x.transpose(1, 2).contiguous()  # [B, F, C, H, W]
    out = F.conv2d(images[:, :frames].flatten(0, 1), weight[:, :, 0], bias, padding=padding)
    for i in range(1, weight.shape[2]):
        out += F.conv2d(images[:, i : i + frames].flatten(0, 1), weight[:, :, i], padding=padding)
    return out.unflatten(0, (batch, frames)).transpose(1, 2).contiguous()


def convolve(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """conv(x), a few frames at a time where x or the result would have more than 2^31 elements."""
    lead, padding = conv.kernel_size[0] - 1, int(conv.padding[1])
    frames, (height, width) = x.shape[2] - lead, x.shape[3:]
    frame = x.shape[0] * max(conv.in_channels, conv.out_channels) * height * width
    most = max(1, LARGEST // frame - lead)
    if frames <= most:
        return conv3d(x, conv.weight, conv.bias, padding)
    parts = [conv3d(x[:, :, i : i + most + lead], conv.weight, conv.bias, padding) for i in range(0, frames, most)]
    return torch.cat(parts, dim=2)


class CausalConv(nn.Module):
    """A 3x3x3 convolution over [B, C, F, H, W] that sees the two frames before a frame, and none after it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=(0, 1, 1))

    @property
    def lead(self) -> int:
        """Frames before a frame that it reads."""
        return self.conv.kernel_size[0] - 1

    def forward(self, x: Tensor, tape: CausalCache) -> Tensor:
        return self.of_led(tape.lead(x, self.lead))

    def of_led(self, x: Tensor) -> Tensor:
        """The same for x [B, C, lead + F, H, W] with the frames before it in front."""
        return convolve(self.conv, x)

    def still(self, x: Tensor) -> Tensor:
        """The same for a first and only frame [B, C, H, W], which stands in for those before it."""
        weight = self.conv.weight.float().sum(2).to(x.dtype)
        return F.conv2d(x, weight, self.conv.bias, padding=1)
