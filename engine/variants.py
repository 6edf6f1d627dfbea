"""The models we know, as rows of one table. Field names are those of the checkpoints' config.json files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Le, Len, MultipleOf

from .errors import CheckpointError
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

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Raises parsing.Unreadable for a value of another type, out of bounds, or that the networks do not have."""
        for name, value in cls.FIXED.items():
            if values.get(name, value) != value:
                raise Unreadable(f"{name} has to be {value}, this is {shorten(repr(values[name]), 40)}")
        return validate(cls, dict(values))


@dataclass(frozen=True)
class TransformerConfig(_Config):
    """transformer/config.json of diffusers' ConsisIDTransformer3DModel; the defaults are the preview checkpoint's."""

    FIXED: ClassVar[Mapping[str, Any]] = {
        "activation_fn": "gelu-approximate", "timestep_activation_fn": "silu", "norm_elementwise_affine": True
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


@dataclass(frozen=True)
class Variant:
    """A ConsisID model: its networks, and the video that it was trained for."""

    name: str
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    text: TextConfig = field(default_factory=TextConfig)
    eva: EvaConfig = field(default_factory=EvaConfig)
    retinaface: Literal["resnet50", "mobile0.25"] = "resnet50"  # the backbone of the face detector
    height: Pixels = 480
    width: Pixels = 720
    num_frames: Frames = 49
    fps: Annotated[int, Ge(1), Le(1000)] = 8
    hub_id: str | None = None

    @property
    def seeded(self) -> bool:
        """A row of the table without a checkpoint: small, its weights are drawn."""
        return self.name in VARIANTS and VARIANTS[self.name].hub_id is None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises parsing.Unreadable for anything that to_dict does not write."""
        return validate(cls, dict(values))

    def check(self, faces: bool = True) -> None:
        """Check what the configurations of the parts say about each other; without `faces` those of the face models
        are left out.

        Raises:
            Unreadable: two numbers that do not belong together.
        """
        t, vae, eva = self.transformer, self.vae, self.eva
        for channels in vae.block_out_channels:
            if channels % vae.norm_num_groups:
                raise Unreadable(
                    f"block_out_channels {channels} is no multiple of norm_num_groups {vae.norm_num_groups}"
                )
        x = self.text
        if x.relative_attention_max_distance <= x.relative_attention_num_buckets // 4:
            raise Unreadable(
                f"relative_attention_max_distance {x.relative_attention_max_distance} is too small for "
                f"{x.relative_attention_num_buckets} buckets"
            )
        doublings = vae.temporal_compression_ratio.bit_length() - 1
        if 2**doublings != vae.temporal_compression_ratio or doublings >= len(vae.block_out_channels):
            raise Unreadable(
                f"temporal_compression_ratio {vae.temporal_compression_ratio} does not fit the VAE's blocks"
            )
        if t.patch_frames > 1 and (not t.use_rotary_positional_embeddings or t.use_learned_positional_embeddings):
            raise Unreadable(
                f"patches over {t.patch_frames} latent frames (patch_size_t) go with rotary positions and no others"
            )
        pairs: dict[str, tuple[object, object]] = {
            "the text encoder's d_model and text_embed_dim": (x.d_model, t.text_embed_dim),
            "in_channels and twice the VAE's latent_channels": (t.in_channels, 2 * vae.latent_channels),
            "out_channels and the VAE's latent_channels": (t.out_channels, vae.latent_channels),
            "temporal_compression_ratio of transformer and VAE": (
                t.temporal_compression_ratio, vae.temporal_compression_ratio,
            ),
        }  # fmt: skip
        if t.ofs_embed_dim:
            pairs["ofs_embed_dim and time_embed_dim"] = (t.ofs_embed_dim, t.time_embed_dim)
        if t.is_train_face and faces:
            pairs |= {
                "the face tower's width and LFE_vit_dim": (eva.width, t.LFE_vit_dim),
                "the widths of the face embeddings and LFE_id_dim": (FACE_EMBEDDING + eva.embed_dim, t.LFE_id_dim),
                "the hidden states of the face tower and LFE_num_scale": (HIDDEN_STATES, t.LFE_num_scale),
            }
        for what, (one, other) in pairs.items():
            if one != other:
                raise Unreadable(f"{what} differ: {one} and {other}")


PREVIEW = Variant("preview", hub_id="BestWishYsh/ConsisID-preview")

# The same networks on the CogVideoX-1.5 base: pairs of latent frames share a token, and there is an `ofs` embedding.
V1_5 = Variant(
    "1.5",
    transformer=TransformerConfig(
        sample_width=300, sample_height=300, sample_frames=81, patch_size_t=2, ofs_embed_dim=512,
        patch_bias=False, use_learned_positional_embeddings=False,
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

TINY_1_5 = replace(
    TINY,
    name="tiny-1.5",
    transformer=replace(
        TINY.transformer, sample_width=24, sample_height=24, sample_frames=33, patch_size_t=2, ofs_embed_dim=64,
        patch_bias=False, use_learned_positional_embeddings=False,
    ),
    vae=replace(TINY.vae, invert_scale_latents=True),
)  # fmt: skip

VARIANTS: Mapping[str, Variant] = {v.name: v for v in (TINY, TINY_1_5, PREVIEW, V1_5)}


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
    "TINY_1_5",
    "V1_5",
    "VARIANTS",
    "EvaConfig",
    "TextConfig",
    "TransformerConfig",
    "VaeConfig",
    "Variant",
]
__all__ += ["name_of", "replace", "variant_named"]
