"""Random autoencoders, as diffusers' module and as the networks that decode runs."""

from collections import Counter
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from consisid.engine.checkpoint.write import _randomise
from consisid.engine.configs import VaeConfig
from consisid.engine.graphs.graph import weight_shapes
from consisid.engine.networks.vae_decoder import Encoder, FirstChunk, NextChunk
from consisid.engine.runtime.executor import Held, PerLayer
from consisid.engine.variants import TINY


def random_config(seed: int) -> VaeConfig:
    """Two or three layers a block, three or four blocks."""
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([2, 4]))
    return VaeConfig(
        block_out_channels=tuple(groups * int(n) for n in rng.integers(1, 4, int(rng.integers(3, 5)))),
        layers_per_block=2 + seed % 2,
        latent_channels=int(rng.choice([4, 16])),
        norm_num_groups=groups,
        norm_eps=1e-6,
    )


# A third of TINY's width, so that a test takes a second.
SMALL = replace(TINY.vae, block_out_channels=(4, 8, 8, 8), norm_num_groups=4)


@cache
def diffusers_vae(config: VaeConfig):
    from diffusers import AutoencoderKLCogVideoX

    blocks = len(config.block_out_channels)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * blocks,
        up_block_types=("CogVideoXUpBlock3D",) * blocks,
        **asdict(config),
    )
    _randomise(vae, 0)
    return vae.eval().requires_grad_(False)


def same_weights(module, vae):
    part = next(iter(dict(module.named_children())))
    weights = {name: tensor for name, tensor in vae.state_dict().items() if name.startswith(part + ".")}
    module.load_state_dict(weights)  # every name and shape
    return module.eval().requires_grad_(False)


class Weights(Held):
    """By graph and layer, as an engine has them."""

    def __init__(self, modules):
        super().__init__()
        for name, module in modules.items():
            parameters = dict(module.named_parameters())
            self[name] = [[parameters[weight] for weight in weight_shapes(module)]]


class Decoding:
    """What decode asks of an engine's networks."""

    def __init__(self, config: VaeConfig):
        vae = diffusers_vae(config)
        self.variant, self.calls = replace(TINY, vae=config), Counter()
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.modules = {
            "vae_encode": same_weights(Encoder(config), vae),
            "decode_first": same_weights(FirstChunk(config), vae),
            "decode_next": same_weights(NextChunk(config), vae),
        }
        self.weights = Weights(self.modules)

    def many(self, name, *inputs):
        return self.modules[name](*inputs)

    def under(self, runners):
        return PerLayer(self.variant, runners, self.weights, self.device, self.dtype)


@cache
def decoding(config: VaeConfig) -> Decoding:
    return Decoding(config)


def random_latents(config: VaeConfig, frames: int, height: int, width: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, frames, config.latent_channels, height, width, generator=generator)


def without_posterior_noise(checkpoint):
    """The checkpoint with a posterior of (nearly) no variance: bf16 and float32 draw other numbers from one seed."""
    file = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    half = weights["encoder.conv_out.conv.bias"].shape[0] // 2
    weights["encoder.conv_out.conv.weight"][half:] = 0
    weights["encoder.conv_out.conv.bias"][half:] = -30
    save_file(weights, file, metadata={"format": "pt"})
    return checkpoint
