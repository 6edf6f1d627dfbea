"""The CogVideoX autoencoder (Yang et al., arXiv:2408.06072) for inference: the decoder chunk by chunk, the encoder for
one frame. Parameters have the names that diffusers' AutoencoderKLCogVideoX gives them.

The decoder works through time in chunks, and every causal convolution hands its last two input frames on to the next
chunk. Only convolutions whose time kernel is longer than 1 have something to hand on.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consisid.kernels import group_norm_silu

from ..variants import VaeConfig

LARGEST = 2**31 - 1  # elements; convolution libraries index with 32 bits
NORM_EPS = 1e-6  # of the decoder's norms and of norm_out; the config's norm_eps is that of the encoder's blocks


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


class Pointwise(nn.Module):
    """A 1x1x1 convolution under the name `conv`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SpatialNorm(nn.Module):
    """GroupNorm with scale and shift from the latents, then SiLU; see kernels/group_norm_silu.py."""

    def __init__(self, channels: int, latent_channels: int, groups: int):
        super().__init__()
        self.norm_layer = nn.GroupNorm(groups, channels, NORM_EPS)
        self.conv_y = Pointwise(latent_channels, channels)
        self.conv_b = Pointwise(latent_channels, channels)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        norm = self.norm_layer
        scale, shift = self.conv_y(latents), self.conv_b(latents)
        return group_norm_silu(x, norm.weight, norm.bias, scale, shift, norm.num_groups, norm.eps)


class UpResnet(nn.Module):
    """A residual block of the decoder."""

    def __init__(self, inputs: int, outputs: int, config: VaeConfig):
        super().__init__()
        self.norm1 = SpatialNorm(inputs, config.latent_channels, config.norm_num_groups)
        self.conv1 = CausalConv(inputs, outputs)
        self.norm2 = SpatialNorm(outputs, config.latent_channels, config.norm_num_groups)
        self.conv2 = CausalConv(outputs, outputs)
        self.conv_shortcut = None if inputs == outputs else nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor, latents: Tensor, tape: Tape) -> Tensor:
        h = self.conv1(self.norm1(x, latents), tape)
        h = self.norm2(h, latents)
        h = self.conv2(h, tape)
        h += self.shortcut(x)
        return h

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.conv_shortcut is None else convolve(self.conv_shortcut, x)


class Upsample(nn.Module):
    """Twice the size, and with `time` twice the frames, by nearest neighbour, then a 3x3 convolution of each frame.

    A 3x3 convolution of a doubled image reads 2x2 different pixels: one 2x2 convolution for each of the four places
    that a result can have in a doubled pixel, its weights being sums of the 3x3's. That is 4/9 of the arithmetic, and
    the doubled image does not come into being. Frames are repeated after the convolution, not before.
    """

    def __init__(self, channels: int, time: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = time

    def forward(self, x: Tensor) -> Tensor:
        return self.padded(F.pad(x, (1, 1, 1, 1)))

    def frames(self, frames: int) -> int:
        """How many frames become of that many; an odd number begins with a picture, which stays one frame."""
        return frames if not self.time or frames == 1 else 2 * frames - frames % 2

    def padded(self, x: Tensor) -> Tensor:
        """x [B, C, F, H + 2, W + 2], with its neighbours or zeros around it, to [B, C, F', 2 H, 2 W]."""
        batch, channels, count, height, width = x.shape
        height, width = height - 2, width - 2
        out = x.new_empty((batch, channels, self.frames(count), 2 * height, 2 * width))
        single = count % 2 if self.time else count  # frames that stay one frame
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
                part = F.conv3d(near, weight[:, :, None].to(x.dtype), self.conv.bias)
                out[:, :, :single, i::2, j::2] = part[:, :, :single]
                if single < count:
                    pairs = out[:, :, single:].unflatten(2, (count - single, 2))
                    pairs[..., i::2, j::2] = part[:, :, single:, None]
        return out


class UpBlock(nn.Module):
    """Residual blocks, and upsampling where there is some."""

    def __init__(self, inputs: int, outputs: int, layers: int, config: VaeConfig, upsample: Upsample | None = None):
        super().__init__()
        self.resnets = nn.ModuleList(UpResnet(outputs if i else inputs, outputs, config) for i in range(layers))
        self.upsamplers = nn.ModuleList(() if upsample is None else (upsample,))

    def forward(self, x: Tensor, latents: Tensor, tape: Tape) -> Tensor:
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

    def forward(self, latents: Tensor, tape: Tape) -> Tensor:
        x = self.conv_in(latents, tape)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x, latents, tape)
        return self.conv_out(self.norm_out(x, latents), tape)


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
        tape = Tape()
        return (self.decoder(latents, tape), *tape.new)


class NextChunk(FirstChunk):
    """Latents [B, 16, 2, h, w] and the caches of the chunk before -> frames [B, 3, 8, H, W], then the live caches."""

    def forward(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        tape = Tape(caches)
        return (self.decoder(latents, tape), *tape.new)


class DownResnet(nn.Module):
    """A residual block of the encoder, over a frame [B, C, H, W]."""

    def __init__(self, inputs: int, outputs: int, config: VaeConfig):
        super().__init__()
        self.norm1 = nn.GroupNorm(config.norm_num_groups, inputs, config.norm_eps)
        self.conv1 = CausalConv(inputs, outputs)
        self.norm2 = nn.GroupNorm(config.norm_num_groups, outputs, config.norm_eps)
        self.conv2 = CausalConv(outputs, outputs)
        self.conv_shortcut = None if inputs == outputs else nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1.still(F.silu(self.norm1(x)))
        h = self.conv2.still(F.silu(self.norm2(h)))
        if self.conv_shortcut is not None:
            x = F.conv2d(x, self.conv_shortcut.weight[:, :, 0], self.conv_shortcut.bias)
        return h + x


class Downsample(nn.Module):
    """Half the size by a 3x3 convolution with stride 2; a row and a column of zeros come after the others."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class DownBlock(nn.Module):
    """Residual blocks, and downsampling where there is some, over a frame."""

    def __init__(self, inputs: int, outputs: int, layers: int, config: VaeConfig, downsample: bool = False):
        super().__init__()
        self.resnets = nn.ModuleList(DownResnet(outputs if i else inputs, outputs, config) for i in range(layers))
        self.downsamplers = nn.ModuleList([Downsample(outputs)] if downsample else ())

    def forward(self, x: Tensor) -> Tensor:
        steps: Iterable[nn.Module] = (*self.resnets, *self.downsamplers)
        for step in steps:
            x = step(x)
        return x


class StillEncoder(nn.Module):
    """The encoder for one frame [B, 3, H, W]: a causal convolution of it is one in two dimensions."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        channels, layers = config.block_out_channels, config.layers_per_block
        self.conv_in = CausalConv(3, channels[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(channels[max(0, i - 1)], size, layers, config, i < len(channels) - 1)
            for i, size in enumerate(channels)
        )
        self.mid_block = DownBlock(channels[-1], channels[-1], 2, config)
        self.norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], NORM_EPS)
        self.conv_out = CausalConv(channels[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in.still(x)
        for block in (*self.down_blocks, self.mid_block):
            x = block(x)
        return self.conv_out.still(F.silu(self.norm_out(x)))


class Encoder(nn.Module):
    """Frames [B, 3, 1, H, W] in [-1, 1] -> moments [B, 2 * 16, 1, h, w]: mean and log variance of the posterior."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.encoder = StillEncoder(config)

    def forward(self, frames: Tensor) -> Tensor:
        return self.encoder(frames[:, :, 0])[:, :, None]
