"""The table of graphs: every network that an engine runs, with the shapes it takes and the tensors it is called with.

A graph is compiled once and called once per entry of `layers`, each time with other weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from .networks import facial, text, transformer, vae
from .networks.bisenet import BiSeNet
from .networks.eva import EvaTower
from .networks.retinaface import RetinaFace
from .shapes import VideoShape
from .variants import Variant


@dataclass(frozen=True)
class Spec:
    """A tensor that a graph takes. An int is a fixed size, a letter a size that may change from call to call: B samples
    in the denoising loop, N steps, H x W pixels of a photo. What runs once per prompt or video runs for one at a time.

    dtype None stands for the dtype that the engine was built for.
    """

    shape: tuple[int | str, ...]
    dtype: torch.dtype | None = None

    def example(self, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
        shape = tuple(sizes[n] if isinstance(n, str) else n for n in self.shape)
        if self.dtype is torch.int64:
            return torch.ones(shape, dtype=torch.int64, device=device)
        return torch.randn(shape, dtype=torch.float32, device=device).to(self.dtype or dtype)


@dataclass(frozen=True)
class Graph:
    """One network: how to make its module, what it takes, and where a checkpoint keeps its weights."""

    name: str
    part: str  # the folder of the checkpoint
    make: Callable[[], nn.Module]
    inputs: Mapping[str, Spec]
    layers: tuple[str, ...] = ("",)  # the prefix of the weights' names, one per layer
    renamed: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False  # runs in float32 whatever the engine's dtype, as in the reference
    more_inputs: Callable[[], Mapping[str, Spec]] | None = None  # those that only a trial run tells

    def specs(self) -> dict[str, Spec]:
        """Every tensor that the graph takes, in order."""
        return dict(self.inputs) | dict(self.more_inputs() if self.more_inputs else {})

    def dtype(self, engine: torch.dtype) -> torch.dtype:
        """What its weights and inputs are in, in an engine of a dtype."""
        return torch.float32 if self.exact else engine

    def module(self) -> nn.Module:
        """The module without weights, on the meta device."""
        with torch.device("meta"):
            return self.make().eval().requires_grad_(False)

    def sources(self, weight: str, layer: int) -> tuple[str, ...]:
        """The tensors of the checkpoint that, stacked along the first dimension, are `weight` of that layer."""
        name = self.renamed.get(weight, weight)
        parts = [name.replace("to_qkv", part) for part in ("to_q", "to_k", "to_v")] if "to_qkv" in name else [name]
        return tuple(self.layers[layer] + part for part in parts)


IN_ROWS = ("block", "last_block")  # whose feed-forward can go through its tokens in pieces


def in_rows(graph: Graph, rows: int) -> Graph:
    """A graph of IN_ROWS with its feed-forward in pieces of the tokens: other sums, the same within rounding."""
    return replace(graph, make=partial(graph.make, rows=rows))  # type: ignore[call-arg]


def weight_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of everything that is bound at a call: parameters, and buffers that a checkpoint holds."""
    tensors = dict(module.named_parameters()) | {
        name: buffer for name, buffer in module.named_buffers() if not name.endswith("num_batches_tracked")
    }
    return {name: tensor.shape for name, tensor in tensors.items()}


def graph_table(variant: Variant, shape: VideoShape) -> dict[str, Graph]:
    """All graphs of a model at a shape, by name, in the order in which a video calls them."""
    t, x, e = variant.transformer, variant.text, variant.eva
    dim, tokens, text_tokens = t.inner_dim, shape.video_tokens, t.max_text_seq_length
    latents = (variant.vae.latent_channels, shape.latent_height, shape.latent_width)
    joint = Spec(("B", text_tokens + tokens, dim))
    video = Spec(("B", tokens, dim))
    half = t.attention_head_dim // 2
    angles = Spec((tokens if t.use_rotary_positional_embeddings else 0, half), torch.float32)
    stream = {"hidden": joint, "modulation": Spec((2, 2, 3, dim)), "cos": angles, "sin": angles}
    identity = Spec((1, t.cross_attn_num_heads * t.LFE_num_querie, dim))
    hidden = Spec((1, text_tokens, x.d_model))
    bias = Spec((1, x.num_heads, text_tokens, text_tokens))
    blocks = tuple(f"transformer_blocks.{i}." for i in range(t.num_layers))
    faces = tuple(f"perceiver_cross_attention.{i}." for i in range(t.num_cross_attn))
    patches = (shape.latent_frames, t.in_channels // 2, shape.latent_height, shape.latent_width)
    last_has_face = t.face_index(t.num_layers - 1) is not None
    temb = {"temb": Spec(("N", t.time_embed_dim))}
    relative_bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

    rows = [
        Graph(
            "text_embed",
            "text_encoder",
            partial(text.TextEmbed, x),
            {"ids": Spec((1, text_tokens), torch.int64)},
            renamed={"bias.relative_attention_bias.weight": relative_bias},
        ),
        Graph(
            "text_layer",
            "text_encoder",
            partial(text.TextLayer, x),
            {"hidden": hidden, "bias": bias},
            tuple(f"encoder.block.{i}." for i in range(x.num_layers)),
        ),
        Graph("text_norm", "text_encoder", partial(text.TextNorm, x), {"hidden": hidden}, ("encoder.",)),
        Graph(
            "vae_encode",
            "vae",
            partial(vae.Encoder, variant.vae),
            {"frames": Spec((1, 3, 1, shape.height, shape.width))},
        ),
        Graph(
            "text_project",
            "transformer",
            partial(transformer.TextProjection, t),
            {"prompt_embeds": Spec(("B", text_tokens, t.text_embed_dim))},
        ),
        Graph(
            "time_embed",
            "transformer",
            partial(transformer.TimeEmbedding, t),
            {"timesteps": Spec(("N",), torch.float32)},
        ),
        Graph("modulation", "transformer", partial(transformer.Modulation, t), temb, blocks),
        Graph("out_modulation", "transformer", partial(transformer.OutModulation, t), temb),
        Graph(
            "image_embed", "transformer", partial(transformer.ImageEmbed, t), {"image_latents": Spec(("B", *patches))}
        ),
        Graph(
            "embed",
            "transformer",
            partial(transformer.Embed, t),
            {"latents": Spec(("B", *patches)), "image_tokens": video},
        ),
        Graph("block", "transformer", partial(transformer.Block, t), stream, blocks[:-1]),
        Graph("last_block", "transformer", partial(transformer.LastBlock, t), stream, blocks[-1:]),
        Graph(
            "head",
            "transformer",
            partial(transformer.Head, t, shape.latent_height, shape.latent_width),
            {"video": video, "modulation": Spec((2, dim))},
        ),
        Graph(
            "decode_first",
            "vae",
            partial(vae.FirstChunk, variant.vae),
            {"latents": Spec((1, latents[0], min(3, shape.latent_frames), *latents[1:]))},
        ),
    ]  # fmt: skip
    if shape.latent_frames > 3:
        rows.append(
            Graph(
                "decode_next",
                "vae",
                partial(vae.NextChunk, variant.vae),
                {"latents": Spec((1, latents[0], 2, *latents[1:]))},
                more_inputs=partial(_cache_specs, variant, shape),
            )
        )
    if t.is_train_face:
        attention = {"hidden": joint, "keys": identity, "values": identity}
        shared = faces[:-1] if last_has_face else faces
        rows += [
            Graph("eva", "eva", partial(EvaTower, **vars(e)), {"image": Spec((1, 3, e.image_size, e.image_size))}),
            Graph(
                "retinaface",
                "retinaface",
                partial(RetinaFace, variant.retinaface),
                {"image": Spec((1, 3, "H", "W"))},
                exact=True,
            ),
            Graph("bisenet", "bisenet", BiSeNet, {"image": Spec((1, 3, 512, 512))}, exact=True),
            Graph(
                "face_extract",
                "transformer",
                partial(facial.LocalFacialExtractor, t),
                {"id_cond": Spec((1, t.LFE_id_dim))}
                | {
                    f"hidden_{i}": Spec((1, (e.image_size // e.patch_size) ** 2 + 1, t.LFE_vit_dim))
                    for i in range(t.LFE_num_scale)
                },
                ("local_facial_extractor.",),
            ),
            Graph(
                "face_fold",
                "transformer",
                partial(facial.FaceFold, t),
                {"face_tokens": Spec((1, t.LFE_num_querie, t.LFE_output_dim))},
                faces,
            ),
        ]
        if shared:
            rows.append(
                Graph("face", "transformer", partial(transformer.FaceAttention, t, text_tokens), attention, shared)
            )
        if last_has_face:
            attention = attention | {"hidden": video}
            rows.append(
                Graph("last_face", "transformer", partial(transformer.FaceAttention, t, 0), attention, faces[-1:])
            )
    return {row.name: row for row in rows}


def _cache_specs(variant: Variant, shape: VideoShape) -> dict[str, Spec]:
    """What decode_next takes after the latents: what decode_first gives after the frames, by a run without data."""
    frames = min(3, shape.latent_frames)
    with torch.device("meta"), torch.no_grad():
        latents = torch.empty(1, variant.vae.latent_channels, frames, shape.latent_height, shape.latent_width)
        caches = vae.FirstChunk(variant.vae).eval()(latents)[1:]
    return {f"cache_{i}": Spec(tuple(cache.shape)) for i, cache in enumerate(caches)}
