"""Drawn at random: small models of other proportions than TINY's, and weights of graphs."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from consisid.engine.graphs.graph import Graph, weight_shapes
from consisid.engine.variants import TINY


def random_variant(seed: int):
    """A model of other proportions: heads, layers, interval, VAE depth, sizes, positions, strength of the face."""
    rng = np.random.default_rng(seed)
    heads = 3 * int(rng.integers(1, 3))
    interval = int(rng.integers(1, 4))
    rotary = bool(rng.integers(0, 4))
    transformer = replace(
        TINY.transformer,
        num_attention_heads=heads,
        num_layers=interval * int(rng.integers(1, 4)),
        cross_attn_interval=interval,
        cross_attn_num_heads=int(rng.integers(1, 4)),
        cross_attn_dim_head=32 * int(rng.integers(1, 3)),
        LFE_output_dim=heads * 64 // 3 * 2,
        LFE_num_querie=int(rng.integers(4, 33)),
        LFE_depth=5 * int(rng.integers(1, 3)),
        time_embed_dim=32 * int(rng.integers(1, 4)),
        attention_bias=bool(rng.integers(0, 2)),
        use_rotary_positional_embeddings=rotary,
        use_learned_positional_embeddings=rotary and bool(rng.integers(0, 2)),
        local_face_scale=float(rng.choice([0.0, 0.5, 1.0, 1.7])),
        max_text_seq_length=int(rng.integers(8, 40)),
        sample_height=2 * int(rng.integers(3, 6)),
        sample_width=2 * int(rng.integers(3, 8)),
        sample_frames=int(rng.choice([9, 17])),
    )
    vae = replace(TINY.vae, layers_per_block=int(rng.integers(1, 4)), block_out_channels=(8, 16, 16, 24))
    return replace(TINY, name="custom", transformer=transformer, vae=vae)


def random_1_5(seed: int):
    """The same with what CogVideoX-1.5 adds, each of it there or not."""
    rng, base = np.random.default_rng(seed), random_variant(seed)
    patch_frames = [None, 1, 2, 2, 2, 3][int(rng.integers(6))]
    longer = patch_frames is not None and patch_frames > 1
    plain = base.transformer
    transformer = replace(
        plain,
        patch_size_t=patch_frames,
        patch_bias=bool(rng.integers(0, 2)),
        ofs_embed_dim=plain.time_embed_dim if rng.integers(0, 3) else None,
        flip_sin_to_cos=bool(rng.integers(0, 2)),
        freq_shift=int(rng.integers(0, 2)),
        is_kps=bool(rng.integers(0, 2)),
        use_rotary_positional_embeddings=longer or plain.use_rotary_positional_embeddings,
        use_learned_positional_embeddings=not longer and plain.use_learned_positional_embeddings,
    )
    return replace(base, transformer=transformer, vae=replace(base.vae, invert_scale_latents=bool(rng.integers(0, 2))))


def random_weights(graph: Graph, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """As large as keeps activations at their size; variances positive."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for name, shape in weight_shapes(graph.module()).items():
        tensor = torch.randn(shape, generator=generator) * (shape[1:].numel() ** -0.5 if len(shape) > 1 else 0.1)
        tensors.append((tensor.abs() + 0.5 if name.endswith("running_var") else tensor).to(dtype))
    return tensors
