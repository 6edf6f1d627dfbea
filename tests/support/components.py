"""Components of diffusers with random weights, so small that a call takes a moment."""

from pathlib import Path
from typing import Any

import torch

TOKENS, WIDTH = 16, 32  # of a prompt


def small_components(
    tokenizer: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **transformer: Any
) -> dict[str, Any]:
    """What diffusers' ConsisIDPipeline is made of, for videos of 48 x 32 pixels.

    Args:
        tokenizer: the folder of one.
        transformer: other settings of its config.
    """
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, ConsisIDTransformer3DModel
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    torch.manual_seed(seed)
    settings = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 8, "out_channels": 4, "time_embed_dim": 16,
        "text_embed_dim": WIDTH, "num_layers": 4, "sample_width": 6, "sample_height": 4, "sample_frames": 9,
        "max_text_seq_length": TOKENS, "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True, "is_train_face": True, "cross_attn_interval": 2,
        "cross_attn_dim_head": 8, "cross_attn_num_heads": 2, "LFE_id_dim": 12, "LFE_vit_dim": 8, "LFE_depth": 4,
        "LFE_dim_head": 8, "LFE_num_heads": 2, "LFE_num_id_token": 2, "LFE_num_querie": 3, "LFE_output_dim": 21,
        "LFE_ff_mult": 1, "LFE_num_scale": 2, "local_face_scale": 1.0,
    }  # fmt: skip
    made: dict[str, Any] = {
        "transformer": ConsisIDTransformer3DModel(**{**settings, **transformer}),
        "vae": AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            temporal_compression_ratio=4, sample_height=32, sample_width=48,
        ),
        "text_encoder": T5EncoderModel(
            T5Config(
                vocab_size=512, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
                feed_forward_proj="gated-gelu", tie_word_embeddings=False,
            )
        ),
        "tokenizer": AutoTokenizer.from_pretrained(tokenizer),
        "scheduler": CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    }  # fmt: skip
    for name in ("transformer", "vae", "text_encoder"):
        made[name] = made[name].eval().to(dtype)
    return made


def small_face(count: int = 1, seed: int = 0) -> dict[str, Any]:
    """id_cond and id_vit_hidden of so many people, as these components take them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "id_cond": torch.randn(count, 12, generator=generator),
        "id_vit_hidden": [torch.randn(count, 5, 8, generator=generator) for _ in range(2)],
    }
