"""The drop-in on "cuda": components where diffusers puts them, and its memory savers."""

import gc

import pytest
import torch
from support.components import TOKENS, small_components, small_face
from support.people import random_face, random_identity

from consisid.engine import ConsisIDPipeline
from consisid.engine.variants import TINY

GiB = 2**30


@pytest.fixture
def pipe(checkpoint):
    wide = {"num_attention_heads": 32, "num_layers": 8, "LFE_output_dim": 341}  # weights are large against the rest
    made = ConsisIDPipeline(**small_components(checkpoint / "tokenizer", **wide))
    made.set_progress_bar_config(disable=True)
    return made


def call(pipe, **others):
    given = {
        "image": random_face(0), "prompt": "A man walks.", "height": 32, "width": 48, "num_frames": 9,
        "num_inference_steps": 2, "max_sequence_length": TOKENS, "output_type": "pt", **small_face(),
    }  # fmt: skip
    return pipe(**given | others).frames


def storages(tensors):
    return {x.untyped_storage().data_ptr() for x in tensors} - {0}


def modules_of(pipe):
    return [x for name in ("transformer", "text_encoder", "vae") for x in getattr(pipe, name).state_dict().values()]


def test_components_on_a_gpu_are_the_engines_weights(pipe):
    pipe.to("cuda")
    frames = call(pipe)
    assert frames.device.type == "cuda"
    assert frames.shape == (1, 9, 3, 32, 48)
    held = [x for bound in pipe.engine.weights._bound.values() for x in bound]
    assert storages(held) <= storages(modules_of(pipe))
    assert {x.device.type for x in held} == {"cuda"}


@pytest.mark.parametrize("tiling", [False, True])
@pytest.mark.parametrize("saver", ["model", "sequential", "group"])
def test_savers_become_plans(pipe, saver, tiling):
    pipe.to("cuda")
    call(pipe)
    if tiling:
        pipe.vae.enable_tiling()
    turn_on = {
        "model": pipe.enable_model_cpu_offload,
        "sequential": pipe.enable_sequential_cpu_offload,
        "group": lambda: pipe.enable_group_offload("cuda", num_blocks_per_group=1, offload_type="block_level"),
    }
    turn_on[saver]()
    assert {x.device.type for x in modules_of(pipe)} == {"cpu"}
    line = pipe.explain_memory()
    assert line.startswith(f"{saver} offload")
    assert "predicted peak" in line
    call(pipe)
    stats = pipe.stats
    assert ("blocks stream" in stats.modes["memory"]) == (saver != "model")
    budget = pipe._latest.plan.budget
    assert stats.peak_bytes <= budget
    assert stats.predicted_bytes <= budget
    pipe.to("cuda")
    call(pipe)
    assert (pipe._latest.plan is None) == (not tiling)


def test_tiling_without_offload(pipe):
    pipe.to("cuda")
    pipe.vae.enable_tiling()
    call(pipe)
    assert pipe.stats.predicted_bytes is not None
    pipe.vae.disable_tiling()
    call(pipe)
    assert pipe.stats.predicted_bytes is None


def test_a_lora_does_not_write_into_the_modules(pipe):
    pipe.to("cuda")
    call(pipe)
    before = [(x.data_ptr(), x._version) for x in modules_of(pipe)]
    name = "transformer.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    pipe.load_lora_weights({name.format("A"): torch.ones(1, 512), name.format("B"): torch.ones(512, 1)})
    call(pipe)
    pipe.unload_lora_weights()
    call(pipe)
    assert [(x.data_ptr(), x._version) for x in modules_of(pipe)] == before


def test_parts_of_a_call(pipe):
    pipe.to("cuda")
    embeds, negative = pipe.encode_prompt("A man walks.", max_sequence_length=TOKENS)
    assert embeds.device.type == negative.device.type == "cuda"
    latents = call(pipe, output_type="latent")
    assert latents.device.type == "cuda"
    assert pipe.decode_latents(latents).shape == (1, 3, 9, 32, 48)


def test_compile_keeps_to_a_savers_budget(checkpoint, tmp_path):
    pipe = ConsisIDPipeline.from_pretrained(checkpoint, torch_dtype=torch.bfloat16)
    pipe.enable_sequential_cpu_offload()
    pipe.compile(tmp_path / "engine", backend="eager")
    assert pipe.engine.memory is not None
    assert pipe.engine.weights.plan is not None
    pipe.remove_all_hooks()
    assert pipe._granted is None


def test_compile_holds_modules_and_engine_one_after_the_other(checkpoint, tmp_path):
    """On the device the peak while a folder is opened is what either takes, not their sum."""

    def loaded():
        return ConsisIDPipeline.from_pretrained(checkpoint, torch_dtype=torch.bfloat16).to("cuda")

    built = loaded().compile(tmp_path / "engine", backend="eager")
    assert built.opened.checkpoint.path == checkpoint, "weights that were only moved are the checkpoint's"
    del built
    gc.collect()
    torch.cuda.empty_cache()
    free = torch.cuda.memory_allocated()
    pipe = loaded()
    modules = torch.cuda.memory_allocated() - free
    person = random_identity(TINY)
    face = {"id_cond": person.id_cond.bfloat16(), "id_vit_hidden": [x.bfloat16() for x in person.id_vit_hidden]}
    call(pipe, height=96, width=144, max_sequence_length=32, **face)
    torch.cuda.reset_peak_memory_stats()
    pipe.compile(tmp_path / "engine", backend="eager")
    assert pipe.opened is not None
    assert torch.cuda.max_memory_allocated() < torch.cuda.memory_allocated() + modules / 4
