"""Hand-set weights for the two convolutional networks of TINY: RetinaFace (MobileNet 0.25) and BiSeNet.

Only a few channels carry anything: the skin rule of fixtures_skin, then blurs of it. Everything else is zero and is
stored as one number (a tensor that is expanded), so the files stay small although the networks have their real size.
"""

import math

import torch
from torch import Tensor, nn

from ...networks.bisenet import MEAN, STD, BiSeNet, Output
from ...networks.layers import BatchNorm
from ...networks.retinaface import ANCHORS, STRIDES, VARIANCES, RetinaFace
from .skin import BOX, POINTS, constraints

KEEP = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
BLUR = torch.full((3, 3), 1 / 9)
WIDE = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 0, 1]]) / 4  # variance of one pixel, where BLUR has two thirds


class Weights:
    """The state dict of a module on the meta device: zeros, norms that do nothing, and what is set by hand."""

    def __init__(self, module: nn.Module) -> None:
        self.state = {name: torch.zeros(()).expand(like.shape) for name, like in module.state_dict().items()}
        for name, part in module.named_modules():
            if isinstance(part, BatchNorm):
                for kind in ("weight", "running_var"):
                    self.state[f"{name}.{kind}"] = torch.ones(()).expand(part.weight.shape)

    def set(self, name: str, index: int | tuple[int, ...], value: Tensor | float) -> None:
        if not self.state[name].is_contiguous() or self.state[name].stride()[-1] == 0:
            self.state[name] = self.state[name].clone(memory_format=torch.contiguous_format)
        self.state[name][index] = torch.as_tensor(value, dtype=torch.float32)


def middle(value: float, size: int = 3) -> Tensor:
    """A kernel [size, size] that takes its centre, times value."""
    kernel = torch.zeros(size, size)
    kernel[size // 2, size // 2] = value
    return kernel


def relu_of_pair(weights: Weights, name: str, output: int, pair: tuple[int, int], factor: float) -> None:
    """Pointwise: add factor * relu(x) to an output, where x and -x went through a leaky ReLU of 0.1 twice.

    Twice leaky, x > 0 gives x and -0.01 x: their sum with weights 1 and 0.01 is x (1 - 0.0001), and 0 for x < 0.
    """
    weights.set(name, (output, pair[0], 0, 0), factor / (1 - 1e-4))
    weights.set(name, (output, pair[1], 0, 0), factor * 0.01 / (1 - 1e-4))


def tiny_retinaface() -> dict[str, Tensor]:
    """A head of about 60 to 190 pixels is answered at stride 16, one of up to about 400 at stride 32."""
    with torch.device("meta"):
        network = RetinaFace("mobile0.25")
    w = Weights(network)
    rgb, bounds = (torch.from_numpy(part).float() for part in constraints())
    # The input is BGR less (104, 117, 123).
    for i in range(4):
        for sign, channel in ((1, i), (-1, i + 4)):
            for k, colour in enumerate(rgb[i].flip(0)):
                w.set("body.stage1.0.0.weight", (channel, k), middle(sign * float(colour)))
            w.set("body.stage1.0.1.bias", channel, sign * (bounds[i] + rgb[i] @ torch.tensor([123.0, 117, 104])))
        w.set("body.stage1.1.0.weight", (i, 0), KEEP)
        w.set("body.stage1.1.0.weight", (i + 4, 0), KEEP)
        relu_of_pair(w, "body.stage1.1.3.weight", 0, (i, i + 4), -1)
        relu_of_pair(w, "body.stage1.1.3.weight", 1, (i, i + 4), 1)
    w.set("body.stage1.1.4.bias", 0, 1)
    w.set("body.stage1.1.4.bias", 1, -1)
    for channel in (0, 1):
        w.set("body.stage1.2.0.weight", (channel, 0), KEEP)
        relu_of_pair(w, "body.stage1.2.3.weight", channel, (0, 1), 1)
    # From here channel 0 is skin at the sharpness that finds a head, channel 1 the surroundings.
    sharp = [BLUR] * 4 + [BLUR, BLUR, BLUR, KEEP, KEEP] + [WIDE, WIDE]
    broad = [BLUR] * 4 + [BLUR, BLUR, WIDE, WIDE, WIDE] + [WIDE, WIDE]
    places = [f"stage1.{i}" for i in (3, 4, 5)] + [f"stage2.{i}" for i in range(6)] + [f"stage3.{i}" for i in (0, 1)]
    for place, kernels in zip(places, zip(sharp, broad, strict=True), strict=True):
        for channel, kernel in enumerate(kernels):
            w.set(f"body.{place}.0.weight", (channel, 0), kernel)
            w.set(f"body.{place}.3.weight", (channel, channel, 0, 0), 1)
    # The pyramid adds coarser maps to finer ones channel by channel: the surroundings at stride 16 come from stride 32.
    w.set("fpn.output2.0.weight", (0, 0, 0, 0), 1)
    w.set("fpn.output3.0.weight", (1, 1, 0, 0), 1)
    for channel, kernel in ((0, KEEP), (1, WIDE)):
        w.set("fpn.merge2.0.weight", (channel, channel), kernel)
    # Channel 0 of a context module is its 3x3 part, channel 48 (32 + 16) the chain of three.
    w.set("ssh2.conv3X3.0.weight", (0, 0), BLUR)
    w.set("ssh2.conv5X5_1.0.weight", (0, 1), WIDE)
    w.set("ssh2.conv7X7_2.0.weight", (0, 0), WIDE)
    w.set("ssh2.conv7x7_3.0.weight", (0, 0), WIDE)
    w.set("ssh3.conv3X3.0.weight", (0, 1), BLUR)
    # Logit of a face: a probability of 0.97 at the threshold. Not steeper, or several cells would be certain at 1.0 and
    # the best of them lost.
    for level, gains, threshold in ((1, ((0, 30.0), (48, -37.5)), 0.33), (2, ((0, 30.0),), 0.62)):
        for channel, gain in gains:
            w.set(f"ClassHead.{level}.conv1x1.weight", (1, channel, 0, 0), gain)
        w.set(f"ClassHead.{level}.conv1x1.bias", 1, 3.5 - 30 * threshold)
    for level in range(3):
        head, second = f"ClassHead.{level}.conv1x1.bias", 3
        w.set(head, second, -20.0)  # the larger prior of a cell is not used, nor stride 8
        if level == 0:
            w.set(head, 1, -20.0)
    for level, width in ((1, 130.0), (2, 280.0)):
        set_shape(w, level, width)
    return w.state


def set_shape(w: Weights, level: int, width: float) -> None:
    """The box and key points of an average head of this width at a level's first prior, as constant offsets."""
    anchor = ANCHORS[level][0]
    # A strided convolution looks at the corner of its cell, the prior sits in the middle.
    corner = -STRIDES[level] / 2
    # Half as large again as a face: neighbouring cells answer too, and suppression has to leave one of them.
    box = torch.from_numpy(1.5 * BOX * width + corner)
    centre, side = box.mean(0) / anchor / VARIANCES[0], (box[1] - box[0]) / anchor
    for i in range(2):
        w.set(f"BboxHead.{level}.conv1x1.bias", i, float(centre[i]))
        w.set(f"BboxHead.{level}.conv1x1.bias", i + 2, math.log(float(side[i])) / VARIANCES[1])
    for i, value in enumerate((POINTS * width + corner).ravel() / anchor / VARIANCES[0]):
        w.set(f"LandmarkHead.{level}.conv1x1.bias", i, float(value))


def tiny_bisenet() -> dict[str, Tensor]:
    """Skin (1) where there is much skin colour around, background (0) elsewhere; all other classes never."""

    class Whole(BiSeNet):
        """With the two auxiliary heads that the real file has."""

        def __init__(self) -> None:
            super().__init__()
            self.conv_out16, self.conv_out32 = Output(128, 64), Output(128, 64)

    with torch.device("meta"):
        network = Whole()
    w = Weights(network)
    rgb, bounds = (torch.from_numpy(part).float() for part in constraints())
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    resnet = "cp.resnet"
    for i in range(4):
        for k in range(3):
            w.set(f"{resnet}.conv1.weight", (i, k), middle(float(rgb[i, k] * 255 * std[k]), 7))
        w.set(f"{resnet}.bn1.bias", i, bounds[i] + rgb[i] @ (255 * mean))
        w.set(f"{resnet}.layer2.0.downsample.0.weight", (0, i, 0, 0), -1.0)
    w.set(f"{resnet}.layer2.0.downsample.1.bias", 0, 1.0)
    # The context is skin blurred at 1/16 until eyes and mouth disappear in it; attention halves (its logits are zero).
    w.set(f"{resnet}.layer3.0.conv1.weight", (0, 0), WIDE)
    w.set(f"{resnet}.layer3.0.conv2.weight", (0, 0), WIDE)
    w.set("cp.arm16.conv.conv.weight", (0, 0), WIDE)
    w.set("cp.conv_head16.conv.weight", (0, 0), BLUR)
    w.set("ffm.convblk.conv.weight", (0, 128, 0, 0), 1.0)
    w.set("ffm.convblk.bn.bias", 1, 1.0)
    for channel in (0, 1):
        w.set("conv_out.conv.conv.weight", (channel, channel), KEEP)
    # Skin where two fifths of the neighbourhood are; the context is at most a half, the threshold a constant channel.
    w.set("conv_out.conv_out.weight", (1, 0, 0, 0), 16.0)
    w.set("conv_out.conv_out.weight", (0, 1, 0, 0), 16 * 0.5 * 0.4)
    for other in range(2, 19):
        w.set("conv_out.conv_out.weight", (other, 1, 0, 0), -1.0)
    return w.state
