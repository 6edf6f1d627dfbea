"""diffusers' and transformers' own modules with the weights of this run: what the engine is compared with."""

import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from .weights import RandomWeights


def transformer(weights: RandomWeights) -> nn.Module:
    """diffusers' ConsisIDTransformer3DModel."""
    from diffusers import ConsisIDTransformer3DModel

    config = _known(ConsisIDTransformer3DModel, asdict(weights.variant.transformer))
    return _filled(weights, "transformer", lambda: ConsisIDTransformer3DModel(**config))


def block(weights: RandomWeights) -> nn.Module:
    """The first block of diffusers' transformer, a ConsisIDBlock, with its weights only."""
    from diffusers.models.transformers.consisid_transformer_3d import ConsisIDBlock

    t = weights.variant.transformer
    config = _known(ConsisIDBlock, asdict(t)) | {"dim": t.inner_dim, "qk_norm": True}
    return _filled(weights, "transformer", lambda: ConsisIDBlock(**config), "transformer_blocks.0.")


def vae(weights: RandomWeights) -> nn.Module:
    """diffusers' AutoencoderKLCogVideoX."""
    from diffusers import AutoencoderKLCogVideoX

    config = weights.variant.vae
    kinds = {
        f"{way.lower()}_block_types": (f"CogVideoX{way}Block3D",) * len(config.block_out_channels)
        for way in ("Down", "Up")
    }
    return _filled(weights, "vae", lambda: AutoencoderKLCogVideoX(**kinds, **asdict(config)))


def text_encoder(weights: RandomWeights) -> nn.Module:
    """transformers' T5EncoderModel."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        **asdict(weights.variant.text), feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False
    )
    return _filled(weights, "text_encoder", lambda: T5EncoderModel(config))


def _known(kind: type[nn.Module], values: dict[str, Any]) -> dict[str, Any]:
    """Of some values those that a module is made with."""
    names = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in values.items() if name in names}


def _filled(weights: RandomWeights, part: str, make: Callable[[], nn.Module], prefix: str = "") -> nn.Module:
    with torch.device("meta"):
        module = make()
    module = weights.fill(part, module, prefix)
    for name, buffer in list(module.named_buffers()):
        if buffer.device.type == "meta" and weights.device.type != "meta":
            raise RuntimeError(f"{type(module).__name__} keeps {name} outside its checkpoint.")
    return module
