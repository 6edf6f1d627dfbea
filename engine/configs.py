"""What a checkpoint's config.json files say of its networks. Field names are those of the files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Le, Len, MultipleOf

from .util.parsing import Count, Positive, Size, Unreadable, shorten, validate

Pixels = Annotated[int, Ge(1), Le(16384)]
Frames = Annotated[int, Ge(1), Le(4096)]
Latents = Annotated[int, Ge(1), Le(2048)]  # a side of the latents: 16,384 pixels
Factor = Annotated[float, Ge(-1e6), Le(1e6)]
FACE_EMBEDDING = 512  # numbers of ArcFace's embedding
HIDDEN_STATES = 5  # of the face tower that the extractor reads


class _Config:
    """A config.json as a frozen dataclass: `read` keeps the fields that we use and ignores the others.

    FIXED: settings without a field, because the networks know one value of each; a file may leave them out.
    """

    FIXED: ClassVar[Mapping[str, Any]] = {}
    # What the class that a file is of has where the file says nothing, if that is not the field's own default.
    ABSENT: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Raises parsing.Unreadable for a value of another type, out of bounds, or that the networks do not have."""
        for name, value in cls.FIXED.items():
            if values.get(name, value) != value:
                raise Unreadable(f"{name} has to be {value}, this is {shorten(repr(values[name]), 40)}")
        return validate(cls, {**cls.ABSENT, **values})


@dataclass(frozen=True)
class TransformerConfig(_Config):
    """transformer/config.json of ConsisIDTransformer3DModel, diffusers' and the authors'; the defaults are the preview
    checkpoint's. `patch_bias` is of patches within a frame: a linear layer over several has a bias anyway."""

    FIXED: ClassVar[Mapping[str, Any]] = {
        "activation_fn": "gelu-approximate", "timestep_activation_fn": "silu", "norm_elementwise_affine": True
    }  # fmt: skip
    ABSENT: ClassVar[Mapping[str, Any]] = {
        "num_attention_heads": 30, "in_channels": 16, "num_layers": 30, "use_rotary_positional_embeddings": False,
        "use_learned_positional_embeddings": False, "is_train_face": False,
    }  # fmt: skip

    num_attention_heads: Count = 48
    attention_head_dim: Annotated[int, Ge(16), Le(1024), MultipleOf(16)] = 64
    in_channels: Size = 32
    out_channels: Size = 16
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[int, Ge(0), Le(1)] = 0
    time_embed_dim: Size = 512
    text_embed_dim: Size = 4096
    num_layers: Count = 42
    attention_bias: bool = True
    sample_width: Latents = 90
    sample_height: Latents = 60
    sample_frames: Frames = 49
    patch_size: Annotated[int, Ge(1), Le(16)] = 2
    patch_size_t: Annotated[int, Ge(1), Le(16)] | None = None
    patch_bias: bool = True
    ofs_embed_dim: Annotated[int, Ge(0), Le(2**20)] | None = None
    temporal_compression_ratio: Annotated[int, Ge(1), Le(16)] = 4
    max_text_seq_length: Annotated[int, Ge(2), Le(4096)] = 226
    norm_eps: Positive = 1e-5
    spatial_interpolation_scale: Positive = 1.875
    temporal_interpolation_scale: Positive = 1.0
    use_rotary_positional_embeddings: bool = True
    use_learned_positional_embeddings: bool = True
    is_train_face: bool = True
    is_kps: bool = False
    cross_attn_interval: Count = 2
    cross_attn_dim_head: Count = 128
    cross_attn_num_heads: Count = 16
    LFE_id_dim: Size = 1280
    LFE_vit_dim: Size = 1024
    LFE_depth: Count = 10
    LFE_dim_head: Count = 64
    LFE_num_heads: Count = 16
    LFE_num_id_token: Count = 5
    LFE_num_querie: Count = 32
    LFE_output_dim: Size = 2048
    LFE_ff_mult: Annotated[int, Ge(1), Le(64)] = 4
    LFE_num_scale: Annotated[int, Ge(1), Le(64)] = 5
    local_face_scale: Factor = 1.0

    @property
    def patch_frames(self) -> int:
        """Latent frames of a patch."""
        return self.patch_size_t or 1

    @property
    def patch_channels(self) -> int:
        """Numbers of a patch in one channel of the latents."""
        return self.patch_frames * self.patch_size**2

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def num_cross_attn(self) -> int:
        """How many blocks are followed by face attention (diffusers rounds down, and then runs past the end)."""
        return -(-self.num_layers // self.cross_attn_interval) if self.is_train_face else 0

    def face_index(self, layer: int) -> int | None:
        """Which face attention follows block `layer`; None where none does."""
        if not self.is_train_face or layer % self.cross_attn_interval:
            return None
        return layer // self.cross_attn_interval


@dataclass(frozen=True)
class VaeConfig(_Config):
    """vae/config.json of diffusers' AutoencoderKLCogVideoX."""

    FIXED: ClassVar[Mapping[str, Any]] = {
        "act_fn": "silu", "in_channels": 3, "out_channels": 3, "shift_factor": None, "latents_mean": None,
        "latents_std": None,
    }  # fmt: skip

    block_out_channels: Annotated[tuple[Size, ...], Len(1, 8)] = (128, 256, 256, 512)
    latent_channels: Size = 16
    layers_per_block: Annotated[int, Ge(1), Le(64)] = 3
    norm_num_groups: Count = 32
    norm_eps: Positive = 1e-6
    temporal_compression_ratio: Annotated[int, Ge(1), Le(16)] = 4
    sample_height: Pixels = 480
    sample_width: Pixels = 720
    scaling_factor: Positive = 0.7
    invert_scale_latents: bool = False
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False

    @property
    def spatial_ratio(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def image_scale(self) -> float:
        """What the latents of a face image are multiplied with; CogVideoX-1.5 was trained with the inverse."""
        return 1 / self.scaling_factor if self.invert_scale_latents else self.scaling_factor


@dataclass(frozen=True)
class TextConfig(_Config):
    """text_encoder/config.json of transformers' T5EncoderModel: of T5 v1.1, or with "relu" of the first T5."""

    vocab_size: Annotated[int, Ge(3), Le(2**22)] = 32128
    d_model: Size = 4096
    d_kv: Size = 64
    d_ff: Size = 10240
    num_layers: Count = 24
    num_heads: Count = 64
    feed_forward_proj: Literal["gated-gelu", "relu"] = "gated-gelu"
    relative_attention_num_buckets: Annotated[int, Ge(4), Le(4096)] = 32
    relative_attention_max_distance: Annotated[int, Ge(4), Le(2**20)] = 128
    layer_norm_epsilon: Positive = 1e-6


@dataclass(frozen=True)
class EvaConfig(_Config):
    """The visual tower of EVA02-CLIP-L-14-336, whose checkpoint brings no config file."""

    width: Size = 1024
    layers: Count = 24
    mlp_hidden: Size = 2730
    image_size: Annotated[int, Ge(1), Le(4096)] = 336
    patch_size: Annotated[int, Ge(1), Le(1024)] = 14
    embed_dim: Size = 768
