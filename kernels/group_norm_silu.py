"""GroupNorm conditioned on the latents, then SiLU: the normalisation of the CogVideoX decoder (Zheng et al., MoVQ,
arXiv:2209.09002).

The reference brings the latents to the size of the features and then applies two 1x1x1 convolutions. A pointwise
convolution commutes with nearest-neighbour upsampling, so scale and shift are computed at the size of the latents and
read through the index map of the upsampling.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(z: Tensor, size: torch.Size) -> Tensor:
    """Nearest neighbour to size [F, H, W]; with an odd F > 1 the first frame is brought along by itself."""
    if size[0] > 1 and size[0] % 2 == 1:
        first = F.interpolate(z[:, :, :1], size=(1, *size[1:]))
        rest = F.interpolate(z[:, :, 1:], size=(size[0] - 1, *size[1:]))
        return torch.cat((first, rest), dim=2)
    return F.interpolate(z, size=tuple(size))


def reference(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
    normed = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(normed * upsample(scale, x.shape[2:]) + upsample(shift, x.shape[2:]))


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float
) -> Tensor:
    """silu(GroupNorm(x) * upsample(scale) + upsample(shift)).

    Args:
        x: [B, C, F, H, W]. The statistics are over a group's channels and all of F, H, W.
        weight, bias: [C], of the GroupNorm.
        scale, shift: [B, C, f, h, w], the conditioning at the size of the latents.
        groups: of the GroupNorm; divides C.
        eps: of the GroupNorm.

    Returns:
        [B, C, F, H, W] in x's dtype. Statistics in float32.
    """
    return reference(x, weight, bias, scale, shift, groups, eps)
