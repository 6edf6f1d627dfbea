"""The CogVideoX autoencoder (Yang et al., arXiv:2408.06072) for inference: the decoder chunk by chunk, and the encoder
for one frame. Parameters have the names that diffusers' AutoencoderKLCogVideoX gives them.

The decoder works through time in chunks, and every causal convolution hands its last two input frames on to the next
chunk. Only convolutions whose time kernel is longer than 1 have something to hand on.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consisid.kernels import group_norm_silu

from ..configs import VaeConfig
from .causal_conv import CausalCache, CausalConv, conv3d, convolve
from .vae_encoder import Encoder

__all__ = ["Decoder", "Encoder", "FirstChunk", "NextChunk", "live_caches"]

NORM_EPS = 1e-6  # of the decoder's norms, whatever the config's norm_eps


class Pointwise(nn.Module):
    """A 1x1x1 convolution under the name `conv`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.conv, x)


class SpatialNorm(nn.Module):
    """GroupNorm with scale and shift from the latents, then SiLU; see kernels/group_norm_silu.py.

    Attributes:
        in_place: as in Upsample.
    """

    def __init__(self, channels: int, latent_channels: int, groups: int):
        super().__init__()
        self.norm_layer = nn.GroupNorm(groups, channels, NORM_EPS)
        self.conv_y = Pointwise(latent_channels, channels)
        self.conv_b = Pointwise(latent_channels, channels)
        self.in_place = True

    def forward(self, x: Tensor, latents: Tensor, tape: CausalCache, lead: int) -> Tensor:
        """x [B, C, F, H, W] -> [B, C, lead + F, H, W]: behind the frames that a convolution with this lead reads."""
        norm = self.norm_layer
        scale, shift = self.conv_y(latents), self.conv_b(latents)
        given = (x, norm.weight, norm.bias, scale, shift, norm.num_groups, norm.eps)
        if not self.in_place:
            return tape.lead(group_norm_silu(*given), lead)
        normed = group_norm_silu(*given, lead, tape.before())
        tape.keep(normed, lead)
        return normed


class UpResnet(nn.Module):
    """A residual block of the decoder."""

    def __init__(self, inputs: int, outputs: int, config: VaeConfig):
        super().__init__()
        self.norm1 = SpatialNorm(inputs, config.latent_channels, config.norm_num_groups)
        self.conv1 = CausalConv(inputs, outputs)
        self.norm2 = SpatialNorm(outputs, config.latent_channels, config.norm_num_groups)
        self.conv2 = CausalConv(outputs, outputs)
        self.conv_shortcut = None if inputs == outputs else nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor, latents: Tensor, tape: CausalCache) -> Tensor:
        h = self.conv1.of_led(self.norm1(x, latents, tape, self.conv1.lead))
        h = self.norm2(h, latents, tape, self.conv2.lead)
        h = self.conv2.of_led(h)
        h += self.shortcut(x)
        return h

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.conv_shortcut is None else convolve(self.conv_shortcut, x)


class Upsample(nn.Module):
    """Twice the size, and with `time` twice the frames, by nearest neighbour, then a 3x3 convolution of each frame.

    A 3x3 convolution of a doubled image reads 2x2 different pixels: one 2x2 convolution for each of the four places
    that a result can have in a doubled pixel, its weights being sums of the 3x3's. That is 4/9 of the arithmetic, and
    the doubled image does not come into being. Frames are repeated after the convolution, not before.

    Attributes:
        in_place: results are written where they belong. False puts them together from parts, a copy more, for formats
            of graphs that know no writing into a tensor.
    """

    def __init__(self, channels: int, time: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.time, self.in_place = time, True

    def forward(self, x: Tensor) -> Tensor:
        return self.padded(F.pad(x, (1, 1, 1, 1)))

    def frames(self, frames: int) -> int:
        """How many frames become of that many; an odd number begins with a picture, which stays one frame."""
        return frames if not self.time or frames == 1 else 2 * frames - frames % 2

    def padded(self, x: Tensor) -> Tensor:
        """x [B, C, F, H + 2, W + 2], with its neighbours or zeros around it, to [B, C, F', 2 H, 2 W]."""
        if not self.in_place:
            return self._joined(x)
        batch, channels, count, height, width = x.shape
        height, width = height - 2, width - 2
        out = x.new_empty((batch, channels, self.frames(count), 2 * height, 2 * width))
        single = count % 2 if self.time else count  # frames that stay one frame
        for i, j, part in self._parts(x):
            out[:, :, :single, i::2, j::2] = part[:, :, :single]
            if single < count:
                pairs = out[:, :, single:].unflatten(2, (count - single, 2))
                pairs[..., i::2, j::2] = part[:, :, single:, None]
        return out

    def _parts(self, x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """The results at each place (row, column) of the doubled pixels, [B, C, F, H, W]."""
        height, width = x.shape[3] - 2, x.shape[4] - 2
        kernel = self.conv.weight.float()
        rows = (
            (kernel[:, :, 0], kernel[:, :, 1] + kernel[:, :, 2]),
            (kernel[:, :, 0] + kernel[:, :, 1], kernel[:, :, 2]),
        )
        for i, row in enumerate(rows):
            lines = torch.stack(row, dim=2)
            left = torch.stack((lines[..., 0], lines[..., 1] + lines[..., 2]), dim=3)
            right = torch.stack((lines[..., 0] + lines[..., 1], lines[..., 2]), dim=3)
            for j, weight in enumerate((left, right)):
                near = x[..., i : i + height + 1, j : j + width + 1]
                yield i, j, conv3d(near, weight[:, :, None].to(x.dtype), self.conv.bias)

    def _joined(self, x: Tensor) -> Tensor:
        parts = [part for _, _, part in self._parts(x)]
        lines = [torch.stack(pair, dim=-1).flatten(-2) for pair in (parts[:2], parts[2:])]
        out = torch.stack(lines, dim=-2).flatten(-3, -2)
        if not self.time:
            return out
        single = x.shape[2] % 2
        pairs = out[:, :, single:, None].expand(-1, -1, -1, 2, -1, -1).flatten(2, 3)
        return torch.cat((out[:, :, :single], pairs), dim=2) if single else pairs


class UpBlock(nn.Module):
    """Residual blocks, and upsampling where there is some."""

    def __init__(self, inputs: int, outputs: int, layers: int, config: VaeConfig, upsample: Upsample | None = None):
        super().__init__()
        self.resnets = nn.ModuleList(UpResnet(outputs if i else inputs, outputs, config) for i in range(layers))
        self.upsamplers = nn.ModuleList(() if upsample is None else (upsample,))

    def forward(self, x: Tensor, latents: Tensor, tape: CausalCache) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, latents, tape)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


def doublings(config: VaeConfig) -> int:
    """How many of the steps in size are steps in time too."""
    return config.temporal_compression_ratio.bit_length() - 1


class Decoder(nn.Module):
    """Latents [B, 16, n, h, w] -> frames [B, 3, N, H, W] in [-1, 1], one chunk of time."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        channels = config.block_out_channels[::-1]
        last = len(channels) - 1
        self.conv_in = CausalConv(config.latent_channels, channels[0])
        self.mid_block = UpBlock(channels[0], channels[0], 2, config)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                channels[max(0, i - 1)], size, config.layers_per_block + 1, config,
                None if i == last else Upsample(size, i < doublings(config)),
            )
            for i, size in enumerate(channels)
        )  # fmt: skip
        self.norm_out = SpatialNorm(channels[-1], config.latent_channels, config.norm_num_groups)
        self.conv_out = CausalConv(channels[-1], 3)

    def forward(self, latents: Tensor, tape: CausalCache) -> Tensor:
        x = self.conv_in(latents, tape)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x, latents, tape)
        return self.conv_out.of_led(self.norm_out(x, latents, tape, self.conv_out.lead))


def live_caches(decoder: nn.Module) -> list[str]:
    """The convolutions that hand frames on, in the order of the caches."""
    return [name for name, module in decoder.named_modules() if isinstance(module, CausalConv) and module.lead]


class FirstChunk(nn.Module):
    """Latents [B, 16, n, h, w] -> frames [B, 3, 4 n - 3 or 4 n, H, W] in [-1, 1], then the live caches.

    An odd number of latent frames gives 4 n - 3 frames: the first is a picture by itself.
    """

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.decoder = Decoder(config)

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        tape = CausalCache()
        return (self.decoder(latents, tape), *tape.new)


class NextChunk(FirstChunk):
    """Latents [B, 16, 2, h, w] and the caches of the chunk before -> frames [B, 3, 8, H, W], then the live caches."""

    def forward(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        tape = CausalCache(caches)
        return (self.decoder(latents, tape), *tape.new)
