"""diffusers' ConsisIDTransformer3DModel with the layers of CogVideoX-1.5, for which diffusers has no class.

TINY_1_5 is written from it, and a pipeline of a 1.5 checkpoint has it as its transformer. The engine never runs it.
"""

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import diffusers
from diffusers.models.embeddings import CogVideoXPatchEmbed, TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from ..configs import TransformerConfig
from ..errors import InputError

ADDED: Mapping[str, Any] = {"patch_size_t": None, "patch_bias": True, "ofs_embed_dim": None}
"""Settings that diffusers' class does not have, and what it does."""


def needs_own_module(config: Mapping[str, Any]) -> bool:
    """Whether diffusers has no class for a transformer with these settings."""
    return any(config.get(name, plain) != plain for name, plain in ADDED.items())


def module_of(config: TransformerConfig) -> nn.Module:
    """A transformer with weights as PyTorch draws them, of diffusers' class where it has one."""
    settings = asdict(config)
    if needs_own_module(settings):
        return ConsisIDTransformer3DModel(**settings)
    plain: nn.Module = diffusers.ConsisIDTransformer3DModel(**{k: v for k, v in settings.items() if k not in ADDED})
    return plain


def _signature() -> inspect.Signature:
    own = inspect.signature(diffusers.ConsisIDTransformer3DModel.__init__)
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=plain) for name, plain in ADDED.items()]
    return own.replace(parameters=[*own.parameters.values(), *added])


class ConsisIDTransformer3DModel(diffusers.ConsisIDTransformer3DModel):
    """The transformer of ConsisID-1.5.

    Args:
        settings: diffusers' and those of ADDED, by name.
    """

    def __init__(self, **settings: Any):
        added = {name: settings.pop(name, plain) for name, plain in ADDED.items()}
        super().__init__(**settings)
        self.register_to_config(**added)
        config = self.config
        width = config.num_attention_heads * config.attention_head_dim
        self.patch_embed = CogVideoXPatchEmbed(
            config.patch_size, config.patch_size_t, config.in_channels, width, config.text_embed_dim,
            config.patch_bias, config.sample_width, config.sample_height, config.sample_frames,
            config.temporal_compression_ratio, config.max_text_seq_length, config.spatial_interpolation_scale,
            config.temporal_interpolation_scale, not config.use_rotary_positional_embeddings,
            config.use_learned_positional_embeddings,
        )  # fmt: skip
        if config.ofs_embed_dim:
            self.ofs_proj = Timesteps(config.ofs_embed_dim, config.flip_sin_to_cos, config.freq_shift)
            self.ofs_embedding = TimestepEmbedding(config.ofs_embed_dim, config.ofs_embed_dim)
        numbers = (config.patch_size_t or 1) * config.patch_size**2 * config.out_channels
        self.proj_out = nn.Linear(width, numbers)

    # What diffusers reads of the constructor to know which settings of a config.json it takes.
    __init__.__signature__ = _signature()  # type: ignore[attr-defined]

    @apply_lora_scale("attention_kwargs")
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor,
        timestep_cond: Tensor | None = None, ofs: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        attention_kwargs: dict[str, Any] | None = None, id_cond: Tensor | None = None,
        id_vit_hidden: list[Tensor] | None = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """The predicted noise [B, F, 16, h, w].

        Args:
            hidden_states: latents and image latents, [B, F, 32, h, w].
            encoder_hidden_states: prompt embeddings [B, T, d_model].
            timestep: [B].
            ofs: [1], of a model with an `ofs` embedding; the pipeline's value is 2.
            image_rotary_emb: cos and sin, each [V, D].
            attention_kwargs: {"scale": ...} of the LoRAs that PEFT has put in.
            id_cond, id_vit_hidden: of the person.

        Raises:
            InputError: no person, for a model that draws one.
        """
        config, dtype = self.config, hidden_states.dtype
        temb = self.time_embedding(self.time_proj(timestep).to(dtype), timestep_cond)
        if config.ofs_embed_dim:
            temb = temb + self.ofs_embedding(self.ofs_proj(ofs).to(dtype))
        joint = self.embedding_dropout(self.patch_embed(encoder_hidden_states, hidden_states))
        text, video = joint.tensor_split((encoder_hidden_states.shape[1],), dim=1)
        face = None
        if config.is_train_face:
            if id_cond is None:
                raise InputError("This model draws a person: give id_cond and id_vit_hidden.")
            face = self.local_facial_extractor(id_cond.to(dtype), [each.to(dtype) for each in id_vit_hidden or ()])
        for index, block in enumerate(self.transformer_blocks):
            video, text = block(video, text, temb, image_rotary_emb)
            if face is not None and index % config.cross_attn_interval == 0:
                attention = self.perceiver_cross_attention[index // config.cross_attn_interval]
                video = video + config.local_face_scale * attention(face, video)
        cut = self.proj_out(self.norm_out(self.norm_final(video), temb=temb))
        frames, size = config.patch_size_t or 1, config.patch_size
        rows, columns = hidden_states.shape[-2] // size, hidden_states.shape[-1] // size
        cut = cut.unflatten(-1, (-1, frames, size, size)).unflatten(1, (-1, rows, columns))
        noise = cut.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(1, 2)
        return Transformer2DModelOutput(sample=noise) if return_dict else (noise,)
