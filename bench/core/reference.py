"""diffusers' and transformers' own modules with the weights of this run: what the engine is compared with."""

import inspect
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from consisid.engine.variants import Variant

from .weights import RandomWeights


def transformer(weights: RandomWeights) -> nn.Module:
    """diffusers' ConsisIDTransformer3DModel."""
    from diffusers import ConsisIDTransformer3DModel

    known = inspect.signature(ConsisIDTransformer3DModel.__init__).parameters
    config = {name: value for name, value in asdict(weights.variant.transformer).items() if name in known}
    return _filled(weights, "transformer", lambda: ConsisIDTransformer3DModel(**config))


def block(weights: RandomWeights) -> nn.Module:
    """The first block of diffusers' transformer, a ConsisIDBlock, with its weights only."""
    from diffusers.models.transformers.consisid_transformer_3d import ConsisIDBlock

    known, t = inspect.signature(ConsisIDBlock.__init__).parameters, weights.variant.transformer
    config = {name: value for name, value in asdict(t).items() if name in known} | {"dim": t.inner_dim, "qk_norm": True}
    return _filled(weights, "transformer", lambda: ConsisIDBlock(**config), "transformer_blocks.0.")


def vae(weights: RandomWeights) -> nn.Module:
    """diffusers' AutoencoderKLCogVideoX."""
    from diffusers import AutoencoderKLCogVideoX

    blocks = len(weights.variant.vae.block_out_channels)
    kinds = {
        "down_block_types": ("CogVideoXDownBlock3D",) * blocks,
        "up_block_types": ("CogVideoXUpBlock3D",) * blocks,
    }
    return _filled(weights, "vae", lambda: AutoencoderKLCogVideoX(**kinds, **asdict(weights.variant.vae)))


def text_encoder(weights: RandomWeights) -> nn.Module:
    """transformers' T5EncoderModel."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        **asdict(weights.variant.text), feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False
    )
    return _filled(weights, "text_encoder", lambda: T5EncoderModel(config))


def _filled(weights: RandomWeights, part: str, make: Any, prefix: str = "") -> nn.Module:
    with torch.device("meta"):
        module = make()
    module = weights.fill(part, module, prefix)
    for name, buffer in list(module.named_buffers()):
        if buffer.device.type == "meta" and weights.device.type != "meta":
            owner, _, attribute = name.rpartition(".")
            raise RuntimeError(f"{type(module).__name__} keeps {attribute} of {owner} outside its checkpoint.")
    return module


def face_inputs(variant: Variant, device: torch.device, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """id_cond [1, 1280] and the hidden states [1, 577, width] of the face's tower, random."""
    generator = torch.Generator().manual_seed(seed)
    t, e = variant.transformer, variant.eva
    tokens = (e.image_size // e.patch_size) ** 2 + 1
    shapes = [(1, t.LFE_id_dim), *[(1, tokens, t.LFE_vit_dim)] * t.LFE_num_scale]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
