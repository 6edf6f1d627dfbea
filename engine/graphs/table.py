"""The table of graphs: every network that an engine runs, with the shapes it takes and the tensors it is called with.

A graph is compiled once and called once per entry of `layers`, each time with other weights.
"""

from functools import lru_cache, partial

import torch

from ..networks import facial, transformer
from ..networks import t5 as text
from ..networks import vae_decoder as vae
from ..networks.bisenet import BiSeNet
from ..networks.eva import EvaTower
from ..networks.retinaface import RetinaFace
from ..shapes import VideoShape, chunks
from ..variants import Variant
from .graph import Graph, Spec


def graph_table(variant: Variant, shape: VideoShape) -> dict[str, Graph]:
    """All graphs of a model at a shape, by name, in the order in which a video calls them."""
    return {row.name: row for row in _rows(variant, shape)}


@lru_cache(maxsize=32)  # what a graph has found out of its module is kept with it
def _rows(variant: Variant, shape: VideoShape) -> list[Graph]:
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
    patches = (shape.loop_frames, t.in_channels // 2, shape.latent_height, shape.latent_width)
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
            stage="text",
        ),
        Graph(
            "text_layer",
            "text_encoder",
            partial(text.TextLayer, x),
            {"hidden": hidden, "bias": bias},
            tuple(f"encoder.block.{i}." for i in range(x.num_layers)),
            stage="text",
            streams=True,
            grouped=True,
        ),
        Graph("text_norm", "text_encoder", partial(text.TextNorm, x), {"hidden": hidden}, ("encoder.",), stage="text"),
        Graph(
            "vae_encode",
            "vae",
            partial(vae.Encoder, variant.vae),
            {"frames": Spec((1, 3, 1, shape.height, shape.width))},
            stage="image",
        ),
        Graph(
            "text_project",
            "transformer",
            partial(transformer.TextProjection, t),
            {"prompt_embeds": Spec(("B", text_tokens, t.text_embed_dim))},
            stage="prepare",
        ),
        Graph(
            "time_embed",
            "transformer",
            partial(transformer.TimeEmbedding, t),
            {"timesteps": Spec(("N",), torch.float32)},
            stage="schedule",
        ),
        Graph(
            "modulation",
            "transformer",
            partial(transformer.Modulation, t),
            temb,
            blocks,
            stage="schedule",
            streams=True,
            grouped=True,
        ),
        Graph("out_modulation", "transformer", partial(transformer.OutModulation, t), temb, stage="schedule"),
        Graph(
            "image_embed",
            "transformer",
            partial(transformer.ImageEmbed, t),
            {"image_latents": Spec(("B", *patches))},
            stage="prepare",
        ),
        Graph(
            "embed",
            "transformer",
            partial(transformer.Embed, t),
            {"latents": Spec(("B", *patches)), "image_tokens": video},
            stage="denoise",
        ),
        Graph(
            "block",
            "transformer",
            partial(transformer.Block, t),
            stream,
            blocks[:-1],
            stage="denoise",
            streams=True,
            grouped=True,
            chunked=True,
        ),
        Graph(
            "last_block",
            "transformer",
            partial(transformer.LastBlock, t),
            stream,
            blocks[-1:],
            stage="denoise",
            streams=True,
            grouped=True,
            chunked=True,
        ),
        Graph(
            "head",
            "transformer",
            partial(transformer.Head, t, shape.latent_height, shape.latent_width),
            {"video": video, "modulation": Spec((2, dim))},
            stage="denoise",
            kept=True,
        ),
        Graph(
            "decode_first",
            "vae",
            partial(vae.FirstChunk, variant.vae),
            {"latents": Spec((1, latents[0], chunks(shape.latent_frames)[0], *latents[1:]))},
            stage="decode",
        ),
    ]
    if len(chunks(shape.latent_frames)) > 1:
        rows.append(
            Graph(
                "decode_next",
                "vae",
                partial(vae.NextChunk, variant.vae),
                {"latents": Spec((1, latents[0], 2, *latents[1:]))},
                more_inputs=partial(_cache_specs, variant, shape),
                stage="decode",
            )
        )
    if t.is_train_face:
        attention = {"hidden": joint, "keys": identity, "values": identity}
        shared = faces[:-1] if last_has_face else faces
        rows += [
            Graph(
                "eva",
                "eva",
                partial(EvaTower, **vars(e)),
                {"image": Spec((1, 3, e.image_size, e.image_size))},
                stage="photo",
            ),
            Graph(
                "retinaface",
                "retinaface",
                partial(RetinaFace, variant.retinaface),
                {"image": Spec((1, 3, "H", "W"))},
                exact=True,
                stage="photo",
            ),
            Graph("bisenet", "bisenet", BiSeNet, {"image": Spec((1, 3, 512, 512))}, exact=True, stage="photo"),
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
                stage="face",
            ),
            Graph(
                "face_fold",
                "transformer",
                partial(facial.FaceFold, t),
                {"face_tokens": Spec((1, t.LFE_num_querie, t.LFE_output_dim))},
                faces,
                stage="face",
                streams=True,
                grouped=True,
            ),
        ]
        if shared:
            rows.append(
                Graph(
                    "face",
                    "transformer",
                    partial(transformer.FaceAttention, t, text_tokens),
                    attention,
                    shared,
                    stage="denoise",
                    grouped=True,
                )
            )
        if last_has_face:
            attention = attention | {"hidden": video}
            rows.append(
                Graph(
                    "last_face",
                    "transformer",
                    partial(transformer.FaceAttention, t, 0),
                    attention,
                    faces[-1:],
                    stage="denoise",
                    grouped=True,
                )
            )
    return rows


@lru_cache(maxsize=32)
def _cache_specs(variant: Variant, shape: VideoShape) -> dict[str, Spec]:
    """What decode_next takes after the latents: what decode_first gives after the frames, by a run without data."""
    frames = chunks(shape.latent_frames)[0]
    with torch.device("meta"), torch.no_grad():
        latents = torch.empty(1, variant.vae.latent_channels, frames, shape.latent_height, shape.latent_width)
        caches = vae.FirstChunk(variant.vae).eval()(latents)[1:]
    return {f"cache_{i}": Spec(tuple(cache.shape)) for i, cache in enumerate(caches)}
