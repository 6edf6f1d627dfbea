"""What happens to a face crop before the EVA tower, and to its embedding after.

Follows `process_face_embeddings` of diffusers' pipelines/consisid/consisid_utils.py, without torchvision.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# CLIP's statistics (OPENAI_DATASET_MEAN and _STD), RGB in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_grey(image: Tensor) -> Tensor:
    """Luminance by Rec. 601 in all three channels. image: [B, 3, H, W] RGB; the same shape comes back."""
    grey = 0.299 * image[:, 0:1] + 0.587 * image[:, 1:2] + 0.114 * image[:, 2:3]
    return grey.repeat(1, 3, 1, 1)


def normalise(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(image - mean) / std per channel of [B, C, H, W]."""
    shape = (1, -1, 1, 1)
    return (image - image.new_tensor(mean).view(shape)) / image.new_tensor(std).view(shape)


def resize(image: Tensor, size: int) -> Tensor:
    """Bicubic with antialiasing to size x size. image: float [B, C, H, W].

    torchvision's `resize` on a float tensor is this interpolation, and like it this does not clamp: bicubic overshoots
    at edges, and the reference normalises the overshoot along.
    """
    return F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False, antialias=True)


def eva_input(image: Tensor, size: int = 336) -> Tensor:
    """A crop ready for the tower. image: float32 RGB in [0, 1], [B, 3, H, W], square. Returns [B, 3, size, size].

    The aligned, parsed crop goes in grey (`to_grey`), a whole image in colour, as in the reference.
    """
    return normalise(resize(image, size), CLIP_MEAN, CLIP_STD)


def id_cond(arcface: Tensor, embedding: Tensor) -> Tensor:
    """[B, 512] of ArcFace (as it comes, not normalised) and [B, 768] of the tower (normalised here) -> [B, 1280]."""
    return torch.cat((arcface, embedding / embedding.norm(2, dim=1, keepdim=True)), dim=-1)
