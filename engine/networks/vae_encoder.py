"""The CogVideoX encoder for one frame, the picture that a video begins with: all in two dimensions. Parameters have the
names that diffusers' AutoencoderKLCogVideoX gives them."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from ..configs import VaeConfig
from .causal_conv import CausalConv

NORM_EPS = 1e-6  # of norm_out, whatever the config's norm_eps


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
