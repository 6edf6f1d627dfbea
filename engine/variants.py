"""The models we know, as rows of one table. Field names are those of the checkpoints' config.json files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

from .errors import CheckpointError


class _Config:
    """A config.json as a frozen dataclass: `read` keeps the fields that we use and ignores the others."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})


@dataclass(frozen=True)
class TransformerConfig(_Config):
    """transformer/config.json of diffusers' ConsisIDTransformer3DModel; the defaults are the preview checkpoint's."""

    num_attention_heads: int = 48
    attention_head_dim: int = 64
    in_channels: int = 32
    out_channels: int = 16
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    time_embed_dim: int = 512
    text_embed_dim: int = 4096
    num_layers: int = 42
    attention_bias: bool = True
    sample_width: int = 90
    sample_height: int = 60
    sample_frames: int = 49
    patch_size: int = 2
    patch_size_t: int | None = None
    ofs_embed_dim: int | None = None
    temporal_compression_ratio: int = 4
    max_text_seq_length: int = 226
    norm_eps: float = 1e-5
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    use_rotary_positional_embeddings: bool = True
    use_learned_positional_embeddings: bool = True
    is_train_face: bool = True
    is_kps: bool = False
    cross_attn_interval: int = 2
    cross_attn_dim_head: int = 128
    cross_attn_num_heads: int = 16
    LFE_id_dim: int = 1280
    LFE_vit_dim: int = 1024
    LFE_depth: int = 10
    LFE_dim_head: int = 64
    LFE_num_heads: int = 16
    LFE_num_id_token: int = 5
    LFE_num_querie: int = 32
    LFE_output_dim: int = 2048
    LFE_ff_mult: int = 4
    LFE_num_scale: int = 5
    local_face_scale: float = 1.0

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

    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    latent_channels: int = 16
    layers_per_block: int = 3
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    temporal_compression_ratio: int = 4
    sample_height: int = 480
    sample_width: int = 720
    scaling_factor: float = 0.7
    invert_scale_latents: bool = False
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False

    @property
    def spatial_ratio(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class TextConfig(_Config):
    """text_encoder/config.json of transformers' T5EncoderModel (T5 v1.1)."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6


@dataclass(frozen=True)
class EvaConfig(_Config):
    """The visual tower of EVA02-CLIP-L-14-336, whose checkpoint brings no config file."""

    width: int = 1024
    layers: int = 24
    mlp_hidden: int = 2730
    image_size: int = 336
    patch_size: int = 14
    embed_dim: int = 768


@dataclass(frozen=True)
class Variant:
    """A ConsisID model: its networks, and the video that it was trained for."""

    name: str
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    text: TextConfig = field(default_factory=TextConfig)
    eva: EvaConfig = field(default_factory=EvaConfig)
    retinaface: Literal["resnet50", "mobile0.25"] = "resnet50"  # the backbone of the face detector
    height: int = 480
    width: int = 720
    num_frames: int = 49
    fps: int = 8
    hub_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        kinds: dict[str, type[_Config]] = {
            "transformer": TransformerConfig, "vae": VaeConfig, "text": TextConfig, "eva": EvaConfig
        }  # fmt: skip
        parts: dict[str, Any] = {k: kinds[k].read(v) if k in kinds else v for k, v in values.items()}
        return cls(**parts)


PREVIEW = Variant("preview", hub_id="BestWishYsh/ConsisID-preview")

# The same networks on the CogVideoX-1.5 base: pairs of latent frames share a token, and there is an `ofs` embedding.
V1_5 = Variant(
    "1.5",
    transformer=TransformerConfig(
        sample_width=300, sample_height=300, sample_frames=81, patch_size_t=2, ofs_embed_dim=512,
        use_learned_positional_embeddings=False,
    ),
    vae=VaeConfig(invert_scale_latents=True),
    hub_id="BestWishYsh/ConsisID-1.5",
)  # fmt: skip

# Every part present and small, with seeded random weights: what the demo and the tests run on a CPU.
TINY = Variant(
    "tiny",
    transformer=TransformerConfig(
        num_attention_heads=3, time_embed_dim=64, text_embed_dim=64, num_layers=4, sample_width=18, sample_height=12,
        sample_frames=17, max_text_seq_length=32, cross_attn_dim_head=64, cross_attn_num_heads=2, LFE_vit_dim=64,
        LFE_dim_head=16, LFE_num_heads=4, LFE_output_dim=128,
    ),
    vae=VaeConfig(
        block_out_channels=(16, 32, 32, 64), layers_per_block=2, norm_num_groups=8, sample_height=96, sample_width=144
    ),
    text=TextConfig(vocab_size=512, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4),
    eva=EvaConfig(width=64, layers=21, mlp_hidden=170),
    retinaface="mobile0.25",
    height=96,
    width=144,
    num_frames=17,
)  # fmt: skip

VARIANTS: Mapping[str, Variant] = {v.name: v for v in (TINY, PREVIEW, V1_5)}


def variant_named(name: str) -> Variant:
    """The row called `name`; raises CheckpointError with the names that exist."""
    if name not in VARIANTS:
        raise CheckpointError(f"There is no variant called {name!r}; the variants are {', '.join(VARIANTS)}.")
    return VARIANTS[name]


def name_of(transformer: TransformerConfig) -> str:
    """The name of the row with exactly this transformer, or "custom"."""
    return next((v.name for v in VARIANTS.values() if v.transformer == transformer), "custom")


__all__ = [
    "PREVIEW",
    "TINY",
    "V1_5",
    "VARIANTS",
    "EvaConfig",
    "TextConfig",
    "TransformerConfig",
    "VaeConfig",
    "Variant",
]
__all__ += ["name_of", "replace", "variant_named"]
