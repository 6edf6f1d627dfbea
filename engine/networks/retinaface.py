"""RetinaFace (Deng et al., arXiv:1905.00641): face boxes, scores and five key points from one pass.

Parameter names are those of facexlib's checkpoints (detection/retinaface_net.py), whose two backbones are here: the
first three stages that matter of a ResNet50, and MobileNet 0.25.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import BatchNorm, convolution

Backbone = Literal["resnet50", "mobile0.25"]
STRIDES = (8, 16, 32)  # of the three feature maps
ANCHORS = ((16, 32), (64, 128), (256, 512))  # side of the square priors in pixels, two per cell and map
VARIANCES = (0.1, 0.2)  # scale of the predicted offsets and sizes


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, leak: float | None = 0.0) -> nn.Sequential:
    """Convolution, norm and, unless leak is None, a leaky ReLU: names 0 and 1."""
    layers: list[nn.Module] = [convolution(inputs, outputs, kernel, stride), BatchNorm(outputs)]
    return nn.Sequential(*layers) if leak is None else nn.Sequential(*layers, nn.LeakyReLU(leak))


def conv_depthwise(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3 (names 0 and 1), pointwise (names 3 and 4)."""
    return nn.Sequential(
        convolution(inputs, inputs, 3, stride, groups=inputs),
        BatchNorm(inputs),
        nn.LeakyReLU(0.1),
        convolution(inputs, outputs, 1),
        BatchNorm(outputs),
        nn.LeakyReLU(0.1),
    )


class MobileNet(nn.Module):
    """MobileNet V1 at a quarter of the width, as three stages of stride 8, 16 and 32."""

    channels = (64, 128, 256)

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            conv_bn(3, 8, stride=2, leak=0.1),
            *(conv_depthwise(*row) for row in ((8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))),
        )
        self.stage2 = nn.Sequential(conv_depthwise(64, 128, 2), *(conv_depthwise(128, 128, 1) for _ in range(5)))
        self.stage3 = nn.Sequential(conv_depthwise(128, 256, 2), conv_depthwise(256, 256, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.stage1(image)
        b = self.stage2(a)
        return a, b, self.stage3(b)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = convolution(inputs, width, 1), BatchNorm(width)
        self.conv2, self.bn2 = convolution(width, width, 3, stride), BatchNorm(width)
        self.conv3, self.bn3 = convolution(width, outputs, 1), BatchNorm(outputs)
        self.downsample = None if inputs == outputs else conv_bn(inputs, outputs, 1, stride, leak=None)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """ResNet50 (He et al., arXiv:1512.03385) without its classifier; a stage's stride is on the 3x3 convolution."""

    channels = (512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 64, 7, 2), BatchNorm(64)
        self.layer1 = self.stage(64, 64, 3, 1)
        self.layer2 = self.stage(256, 128, 4, 2)
        self.layer3 = self.stage(512, 256, 6, 2)
        self.layer4 = self.stage(1024, 512, 3, 2)

    @staticmethod
    def stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            Bottleneck(inputs, width, stride), *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1))
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Every second of the maxima at stride 1: the shape rule of PyTorch 2.11 for a stride of 2 asks whether the size
        # is even, which no graph for photos of any size can answer.
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, 1, 1)[..., ::2, ::2]
        a = self.layer2(self.layer1(x))
        b = self.layer3(a)
        return a, b, self.layer4(b)


class Pyramid(nn.Module):
    """Feature pyramid: coarse maps, enlarged, are added to the finer ones."""

    def __init__(self, inputs: tuple[int, int, int], width: int, leak: float) -> None:
        super().__init__()
        self.output1 = conv_bn(inputs[0], width, 1, leak=leak)
        self.output2 = conv_bn(inputs[1], width, 1, leak=leak)
        self.output3 = conv_bn(inputs[2], width, 1, leak=leak)
        self.merge1 = conv_bn(width, width, leak=leak)
        self.merge2 = conv_bn(width, width, leak=leak)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = self.output1(a), self.output2(b), self.output3(c)
        b = self.merge2(b + F.interpolate(c, size=b.shape[2:], mode="nearest"))
        a = self.merge1(a + F.interpolate(b, size=a.shape[2:], mode="nearest"))
        return a, b, c


class Context(nn.Module):
    """SSH's context module: 3x3, 5x5 and 7x7 fields side by side, the larger ones as chains of 3x3."""

    def __init__(self, width: int, leak: float) -> None:
        super().__init__()
        self.conv3X3 = conv_bn(width, width // 2, leak=None)
        self.conv5X5_1 = conv_bn(width, width // 4, leak=leak)
        self.conv5X5_2 = conv_bn(width // 4, width // 4, leak=None)
        self.conv7X7_2 = conv_bn(width // 4, width // 4, leak=leak)
        self.conv7x7_3 = conv_bn(width // 4, width // 4, leak=None)

    def forward(self, x: Tensor) -> Tensor:
        middle = self.conv5X5_1(x)
        return F.relu(
            torch.cat((self.conv3X3(x), self.conv5X5_2(middle), self.conv7x7_3(self.conv7X7_2(middle))), dim=1)
        )


class Head(nn.Module):
    """One value group per anchor: [B, C, H, W] -> [B, H * W * 2, values]."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(width, 2 * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self.values))


class RetinaFace(nn.Module):
    """The detector. Works at any size; the number of priors N follows from it (detect.priors)."""

    def __init__(self, backbone: Backbone = "resnet50") -> None:
        super().__init__()
        width, leak = (256, 0.0) if backbone == "resnet50" else (64, 0.1)
        self.body: ResNet50 | MobileNet = ResNet50() if backbone == "resnet50" else MobileNet()
        self.fpn = Pyramid(self.body.channels, width, leak)
        self.ssh1, self.ssh2, self.ssh3 = Context(width, leak), Context(width, leak), Context(width, leak)
        self.ClassHead = nn.ModuleList(Head(width, 2) for _ in STRIDES)
        self.BboxHead = nn.ModuleList(Head(width, 4) for _ in STRIDES)
        self.LandmarkHead = nn.ModuleList(Head(width, 10) for _ in STRIDES)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Args: image: [B, 3, H, W], BGR in [0, 255] less the mean (104, 117, 123).

        Returns:
            Offsets of the boxes [B, N, 4], probabilities of (background, face) [B, N, 2] and offsets of the five key
            points [B, N, 10], all relative to the priors.
        """
        a, b, c = self.fpn(*self.body(image))
        maps = (self.ssh1(a), self.ssh2(b), self.ssh3(c))
        boxes = torch.cat([head(x) for head, x in zip(self.BboxHead, maps, strict=True)], dim=1)
        scores = torch.cat([head(x) for head, x in zip(self.ClassHead, maps, strict=True)], dim=1)
        points = torch.cat([head(x) for head, x in zip(self.LandmarkHead, maps, strict=True)], dim=1)
        return boxes, scores.softmax(dim=-1), points


def retinaface_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by our names: some files were saved from DataParallel, below `module.`."""
    return {
        key.removeprefix("module."): value
        for key, value in checkpoint.items()
        if not key.endswith("num_batches_tracked")
    }


def retinaface_backbone(state: Mapping[str, Tensor]) -> Backbone:
    """Which backbone the tensors of `retinaface_state` belong to."""
    return "mobile0.25" if "body.stage1.0.0.weight" in state else "resnet50"
