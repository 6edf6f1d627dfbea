"""What plans of the memory are made for."""

from functools import lru_cache

import torch

from consisid.engine.memory.costs import Costs, video_costs
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, TINY, V1_5

GIB = 2**30
KINDS = {
    "preview": (PREVIEW, (480, 720, 49), torch.bfloat16),
    "preview, small": (PREVIEW, (256, 384, 17), torch.float16),
    "1.5": (V1_5, (480, 720, 49), torch.bfloat16),
    "tiny": (TINY, (96, 144, 17), torch.float32),
}


@lru_cache
def sizes_of(kind: str, **options) -> Costs:
    variant, shape, dtype = KINDS[kind]
    return video_costs(variant, VideoShape.of(variant, *shape), dtype, device="cuda", **options)
