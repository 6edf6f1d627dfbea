"""What every measurement runs on: identities and prompts that need no photograph, the same for every maker."""

import numpy as np
import torch
from PIL import Image

from consisid.engine import Identity
from consisid.engine.variants import Variant

# Short enough for TINY's 32 tokens, so that nothing is cut.
PROMPT = "A person walks slowly through fresh snow."
GUIDANCE = 6.0


def prompt_of(index: int) -> str:
    """A new prompt per video, so that nobody answers from what is kept of the last one."""
    return f"{index}. {PROMPT}"


def identity(variant: Variant, seed: int = 0) -> Identity:
    """Random embeddings of the right shapes and a random picture: time and memory do not depend on the values."""
    generator = torch.Generator().manual_seed(seed)
    config, eva = variant.transformer, variant.eva
    tokens = (eva.image_size // eva.patch_size) ** 2 + 1
    pixels = np.random.default_rng(seed).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    return Identity.from_embeddings(
        torch.randn(1, config.LFE_id_dim, generator=generator),
        [torch.randn(1, tokens, config.LFE_vit_dim, generator=generator) for _ in range(config.LFE_num_scale)],
        Image.fromarray(pixels),
    )
