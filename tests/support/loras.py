"""LoRAs drawn at random, and videos with them."""

import torch

from consisid.engine.variants import TINY

from .people import random_identity

PROMPT = "A person walks."
OPTIONS = {"seed": 5, "num_inference_steps": 2, "num_frames": 9, "output_type": "latent"}
# Of each kind one, the first and the last block, what is hoisted out of the loop, and what is stacked to one matrix.
MODULES = (
    "patch_embed.proj", "patch_embed.text_proj", "time_embedding.linear_1", "local_facial_extractor.layers.1.0.to_kv",
    "perceiver_cross_attention.1.to_kv", "perceiver_cross_attention.0.to_q", "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.0.attn1.to_v", "transformer_blocks.1.attn1.to_out.0", "transformer_blocks.3.attn1.to_k",
    "transformer_blocks.2.ff.net.0.proj", "transformer_blocks.3.ff.net.2", "transformer_blocks.1.norm1.linear",
    "norm_out.linear", "proj_out",
)  # fmt: skip


def lora(checkpoint, seed=0, rank=4, modules=MODULES, size=0.4):
    """A LoRA with diffusers' names, of other ranks in the feed-forwards; its product is about `size` of a weight."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for module in modules:
        weight = checkpoint.tensor("transformer", f"{module}.weight")
        r = rank + 2 if "ff" in module else rank
        down = torch.randn(r, *weight.shape[1:], generator=generator) * size
        up = torch.randn(weight.shape[0], r, *(1 for _ in weight.shape[2:]), generator=generator)
        state[f"transformer.{module}.lora_A.weight"] = down / weight[0].numel() ** 0.5
        state[f"transformer.{module}.lora_B.weight"] = up / r**0.5
    return state


def latents(engine, person=None, **options):
    return engine.generate(person or random_identity(TINY), PROMPT, **{**OPTIONS, **options}).latents


def both(engine, pipeline, call):
    for owner in (engine, pipeline):
        call(owner)
