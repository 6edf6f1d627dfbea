"""The models we know, as rows of one table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le

from .configs import FACE_EMBEDDING, HIDDEN_STATES, EvaConfig, Frames, Pixels, TextConfig, TransformerConfig, VaeConfig
from .errors import CheckpointError
from .util.parsing import Unreadable, validate


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
        }
        if t.use_learned_positional_embeddings or not t.use_rotary_positional_embeddings:  # which count frames by it
            pairs["temporal_compression_ratio of transformer and VAE"] = (
                t.temporal_compression_ratio, vae.temporal_compression_ratio,
            )  # fmt: skip
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


USUAL = (480, 720, 49)  # height, width and frames that the reference's call asks for by itself


def own_size(transformer: TransformerConfig, vae: VaeConfig) -> tuple[int, int, int]:
    """Height, width and frames of a video where nobody asks for others: of the table's row with this transformer, else
    what it was trained at. A grid that is counted from its corner (CogVideoX-1.5) is larger than what a model was
    trained at: there it is the usual size, as far as the grid reaches."""
    row = VARIANTS.get(name_of(transformer))
    if row is not None:
        return row.height, row.width, row.num_frames
    ratio, frames = vae.spatial_ratio, 2 * vae.temporal_compression_ratio
    size = transformer.sample_height * ratio, transformer.sample_width * ratio, transformer.sample_frames
    if transformer.patch_size_t is not None:
        size = min(size[0], USUAL[0]), min(size[1], USUAL[1]), min(size[2], USUAL[2])
    return size[0], size[1], (size[2] - 1) // frames * frames + 1


def name_of(transformer: TransformerConfig) -> str:
    """The name of the row with exactly this transformer, or "custom"."""
    return next((v.name for v in VARIANTS.values() if v.transformer == transformer), "custom")
