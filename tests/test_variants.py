"""The full-size models: parameter counts on the meta device, and names and shapes against diffusers' own classes."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from diffusers.models.embeddings import Timesteps

from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.checkpoint.reading import Checkpoint
from consisid.engine.configs import TransformerConfig
from consisid.engine.graphs.graph import weight_shapes
from consisid.engine.graphs.table import graph_table
from consisid.engine.networks.transformer import timestep_embedding
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, TINY, TINY_1_5, V1_5, VARIANTS, Variant, own_size

# Millions of parameters of the preview checkpoint.
MILLIONS = {
    "feed-forward": 3171.5,
    "attention": 1586.0,
    "adaptive norms": 794.3,
    "face attention": 440.6,
    "facial extractor": 151.4,
    "text encoder": 4762,
    "encoder": 92,
    "decoder": 123,
    "eva": 304,
}


def kind(part: str, name: str) -> str:
    if part == "text_encoder":
        return "text encoder"
    if part in ("eva", "retinaface", "bisenet"):
        return part
    if part == "vae":
        return name.split(".")[0]
    if name.startswith("local_facial"):
        return "facial extractor"
    if name.startswith("perceiver"):
        return "face attention"
    for mark, result in ((".ff.", "feed-forward"), (".attn1.", "attention"), (".linear.", "adaptive norms")):
        if name.startswith("transformer_blocks") and mark in name:
            return result
    return "rest"


def stored(variant: Variant) -> dict[tuple[str, str], tuple[int, ...]]:
    """Every tensor of a checkpoint that the graphs read, with its shape there."""
    found = {}
    for graph in graph_table(variant, VideoShape.of(variant, None, None, None)).values():
        for name, shape in weight_shapes(graph.module()).items():
            for layer in range(len(graph.layers)):
                sources = graph.sources(name, layer)
                for source in sources:
                    found[graph.part, source] = (shape[0] // len(sources), *shape[1:])
    return found


def test_parameter_counts_of_the_preview():
    counts: Counter[str] = Counter()
    for (part, name), shape in stored(PREVIEW).items():
        counts[kind(part, name)] += torch.Size(shape).numel()
    for name, millions in MILLIONS.items():
        # Half a unit of the last digit that the table gives, and the few biases and norms that it rounds away.
        assert counts[name] / 1e6 == pytest.approx(millions, abs=0.6), name


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_are_diffusers(name):
    """Of the 1.5 models those of diffusers' layers for CogVideoX-1.5."""
    from consisid.engine.checkpoint.transformer_module import module_of

    variant = VARIANTS[name]
    with torch.device("meta"):
        reference = module_of(variant.transformer)
    expected = {name: tuple(tensor.shape) for name, tensor in reference.named_parameters()}
    ours = {name: shape for (part, name), shape in stored(variant).items() if part == "transformer"}
    assert ours == expected


def test_a_1_5_checkpoint_is_recognised_by_its_fields(tmp_path):
    """Whatever the folder is called and whichever class wrote it."""
    folder = write_checkpoint(TINY_1_5, tmp_path / "consisid-preview")
    file = folder / "transformer" / "config.json"
    file.write_text(file.read_text().replace('"ConsisIDTransformer3DModel"', '"ConsisIDTransformer3DModelOfOurs"'))
    found = Checkpoint(folder).variant
    assert (found.name, found.transformer, found.vae) == ("tiny-1.5", TINY_1_5.transformer, TINY_1_5.vae)
    shape = VideoShape.of(V1_5, 480, 720, 49)
    assert (shape.latent_frames, shape.loop_frames, shape.video_tokens) == (13, 14, 9450)


def test_a_model_of_ones_own_is_as_large_as_its_positions_or_the_usual_video():
    """A grid that is counted from its corner is larger than what anybody trains."""
    tuned = replace(V1_5.transformer, is_kps=True)
    assert own_size(tuned, V1_5.vae) == (480, 720, 49)
    assert own_size(replace(tuned, sample_height=40, sample_frames=20), V1_5.vae) == (320, 720, 17)
    assert own_size(replace(PREVIEW.transformer, is_kps=True, sample_width=80), PREVIEW.vae) == (480, 640, 49)


def test_what_a_configuration_does_not_say_is_as_its_class_has_it():
    read = TransformerConfig.read({})
    assert (read.num_attention_heads, read.num_layers, read.in_channels) == (30, 30, 16)
    found = read.use_rotary_positional_embeddings, read.use_learned_positional_embeddings, read.is_train_face
    assert found == (False, False, False)


@pytest.mark.parametrize("dim", [32, 33])
@pytest.mark.parametrize("flip", [True, False])
def test_sinusoids_are_diffusers(dim, flip):
    steps = torch.tensor([0.0, 2.0, 311.0])
    theirs = Timesteps(dim, flip, 1)(steps)
    assert (timestep_embedding(steps, dim, flip, 1) - theirs).abs().max() < 1e-6


def test_tiny_has_the_sizes_of_the_contract():
    t, vae = TINY.transformer, TINY.vae
    assert (t.num_attention_heads, t.attention_head_dim, t.inner_dim, t.num_layers) == (3, 64, 192, 4)
    assert (t.cross_attn_interval, t.time_embed_dim, t.max_text_seq_length, t.text_embed_dim) == (2, 64, 32, 64)
    assert (t.LFE_num_scale, t.LFE_depth, t.LFE_vit_dim, t.LFE_id_dim, t.LFE_output_dim) == (5, 10, 64, 1280, 128)
    assert (vae.block_out_channels, vae.latent_channels, TINY.text.num_layers) == ((16, 32, 32, 64), 16, 2)
    assert (TINY.num_frames, TINY.height, TINY.width) == (17, 96, 144)
    assert VideoShape.of(TINY, None, None, None).latent_frames == 5


def test_a_variant_survives_json():
    for variant in VARIANTS.values():
        assert Variant.from_dict(variant.to_dict()) == variant


@pytest.mark.parametrize("variant", [PREVIEW, V1_5], ids=lambda variant: variant.name)
def test_the_usual_video(variant):
    shape = VideoShape.of(variant, None, None, None)
    assert (shape.num_frames, shape.width, shape.height) == (49, 720, 480)
