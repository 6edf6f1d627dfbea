"""BiSeNet (Yu et al., arXiv:1808.00897): which part of a face every pixel of an aligned crop belongs to.

Parameter names are those of facexlib's parsing_bisenet.pth (parsing/bisenet.py), the variant whose spatial path is the
second stage of the ResNet18. Its two auxiliary heads serve training only and are left out.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import BatchNorm, convolution

CLASSES = 19
# What ConsisID paints white: background, clothes, hat, both ears, earrings, neck, necklace. Hair (17) stays.
BACKGROUND = (0, 16, 18, 7, 8, 9, 14, 15)
# Of ImageNet, RGB in [0, 1]: what the crop is normalised with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ConvBNReLU(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = convolution(inputs, outputs, kernel), BatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, outputs, 3, stride), BatchNorm(outputs)
        self.conv2, self.bn2 = convolution(outputs, outputs, 3), BatchNorm(outputs)
        same = inputs == outputs and stride == 1
        self.downsample = None if same else nn.Sequential(convolution(inputs, outputs, 1, stride), BatchNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 64, 7, 2), BatchNorm(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at 1/8, 1/16 and 1/32 of the size."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, 2, 1)
        a = self.layer2(self.layer1(x))
        b = self.layer3(a)
        return a, b, self.layer4(b)


def mean_over_image(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3), keepdim=True)


class Refinement(nn.Module):
    """Attention refinement: the channels are weighted by what the whole image shows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(inputs, outputs)
        self.conv_atten, self.bn_atten = convolution(outputs, outputs, 1), BatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.bn_atten(self.conv_atten(mean_over_image(x))).sigmoid()


class ContextPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet18()
        self.arm16, self.arm32 = Refinement(256, 128), Refinement(512, 128)
        self.conv_head32, self.conv_head16 = ConvBNReLU(128, 128), ConvBNReLU(128, 128)
        self.conv_avg = ConvBNReLU(512, 128, kernel=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The spatial features [B, 128, H/8, W/8] and the context at the same size."""
        a, b, c = self.resnet(image)
        context = self.arm32(c) + self.conv_avg(mean_over_image(c))
        context = self.conv_head32(F.interpolate(context, size=b.shape[2:], mode="nearest"))
        context = self.arm16(b) + context
        return a, self.conv_head16(F.interpolate(context, size=a.shape[2:], mode="nearest"))


class Fusion(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convblk = ConvBNReLU(inputs, outputs, kernel=1)
        self.conv1 = convolution(outputs, outputs // 4, 1)
        self.conv2 = convolution(outputs // 4, outputs, 1)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = self.convblk(torch.cat((spatial, context), dim=1))
        return x + x * self.conv2(F.relu(self.conv1(mean_over_image(x)))).sigmoid()


class Output(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(inputs, width)
        self.conv_out = convolution(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cp = ContextPath()
        self.ffm = Fusion(256, 256)
        self.conv_out = Output(256, 256)

    def forward(self, image: Tensor) -> Tensor:
        """image: [B, 3, H, W], RGB normalised with MEAN and STD; 512 x 512 in ConsisID. Returns [B, 19, H, W]."""
        logits = self.conv_out(self.ffm(*self.cp(image)))
        return F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=True)


def bisenet_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by our names, without the auxiliary heads and the batch counters."""
    return {
        key: value
        for key, value in checkpoint.items()
        if not key.startswith(("conv_out16.", "conv_out32.")) and not key.endswith("num_batches_tracked")
    }
