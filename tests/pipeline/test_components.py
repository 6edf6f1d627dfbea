"""Components in memory: held once, followed when they change, and given back as they were."""

import gc
import weakref

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, ConsisIDTransformer3DModel
from diffusers import ConsisIDPipeline as Theirs
from support.components import small_components
from support.reference import LATENTS

from consisid.engine import ConsisIDPipeline
from consisid.engine.errors import InputError
from consisid.engine.pipeline import parts
from consisid.engine.pipeline.components import ComponentEngine

MODULES = ("transformer", "text_encoder", "vae")


def storages(tensors):
    """Bytes of the distinct storages of tensors, by address."""
    found = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    found.pop(0, None)
    return found


def weights_of(pipeline):
    return [x for name in MODULES for x in getattr(pipeline, name).state_dict().values()]


def held_by(pipeline):
    return [x for bound in pipeline.engine.weights._bound.values() for x in bound]


def test_the_engine_holds_the_modules_tensors_and_no_copy(ours, theirs, arguments):
    expected = theirs(**arguments()).frames
    assert (ours(**arguments()).frames - expected).abs().max() < LATENTS
    modules, held = storages(weights_of(ours)), storages(held_by(ours))
    assert held.keys() <= modules.keys()
    assert theirs(**arguments()).frames.equal(expected)  # the modules compute what they did


def test_pipelines_over_the_same_components_hold_them_once(ours, arguments):
    expected = ours(**arguments()).frames
    others = [ConsisIDPipeline(**ours.components), ConsisIDPipeline.from_pipe(ours)]
    for other in others:
        other.set_progress_bar_config(disable=True)
        assert other(**arguments()).frames.equal(expected)
    assert storages(x for pipe in (ours, *others) for x in held_by(pipe)).keys() <= storages(weights_of(ours)).keys()


def test_two_transformers_share_a_text_encoder_and_a_vae(components, tiny_checkpoint, arguments):
    second = small_components(tiny_checkpoint / "tokenizer", seed=1)["transformer"]
    pipes = [ConsisIDPipeline(**components), ConsisIDPipeline(**components | {"transformer": second})]
    made = [pipe(**arguments(prompt="A man walks.")).frames for pipe in pipes]
    assert (made[0] - made[1]).abs().max() > 0.01
    everything = [*weights_of(pipes[0]), *second.state_dict().values()]
    assert storages(x for pipe in pipes for x in held_by(pipe)).keys() <= storages(everything).keys()


@pytest.mark.parametrize("kind", ["in place", "loaded", "another module", "another dtype"])
def test_weights_that_change_are_followed(ours, components, arguments, kind, tiny_checkpoint):
    """Also those that were kept: face keys and values, text embeddings."""
    other = small_components(tiny_checkpoint / "tokenizer", seed=1)
    given = arguments(prompt="A man walks.")
    before = ours(**given).frames
    if kind == "in place":
        with torch.no_grad():
            for name in MODULES:
                for parameter, source in zip(components[name].parameters(), other[name].parameters(), strict=True):
                    parameter.copy_(source)
    elif kind == "loaded":
        for name in MODULES:
            components[name].load_state_dict(other[name].state_dict())
    elif kind == "another module":
        for name in MODULES:
            setattr(ours, name, other[name])
    else:
        ours.to(torch.float64).to(torch.float32)
    after = ours(**arguments(prompt="A man walks.")).frames
    if kind == "another dtype":
        assert after.equal(before)
        return
    expected = Theirs(**other | {"scheduler": ours.scheduler})(**arguments(prompt="A man walks.")).frames
    assert (after - before).abs().max() > 0.01
    assert (after - expected).abs().max() < LATENTS


def test_a_lora_leaves_the_modules_alone(ours, arguments):
    before = [x.clone() for x in weights_of(ours)]
    expected = ours(**arguments()).frames
    generator = torch.Generator().manual_seed(0)
    name = "transformer.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    lora = {
        name.format("A"): torch.randn(2, 32, generator=generator),
        name.format("B"): torch.randn(32, 2, generator=generator),
    }
    ours.load_lora_weights(lora, adapter_name="style")
    changed = ours(**arguments()).frames
    assert (changed - expected).abs().max() > 0.01
    assert all(x.equal(y) for x, y in zip(weights_of(ours), before, strict=True))
    assert ours.get_active_adapters() == ["style"]
    half = ours(**arguments(attention_kwargs={"scale": 0.5})).frames
    ours.set_adapters("style", 0.5)
    assert ours(**arguments()).frames.equal(half)
    ours.fuse_lora(lora_scale=2.0)
    assert ours.num_fused_loras == 1
    assert ours.fused_loras == {"style"}
    assert (ours(**arguments()).frames - changed).abs().max() < LATENTS
    ours.unfuse_lora()
    ours.unload_lora_weights()
    assert ours(**arguments()).frames.equal(expected)


def test_loras_and_scheduler_stay_when_the_engine_is_made_anew(ours, arguments):
    name = "transformer.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    ours.load_lora_weights({name.format("A"): torch.ones(1, 32), name.format("B"): torch.ones(32, 1)})
    ours.scheduler = CogVideoXDDIMScheduler.from_config(ours.scheduler.config, prediction_type="epsilon")
    before = ours(**arguments()).frames
    with torch.no_grad():
        next(ours.vae.parameters()).add_(0)  # another number of its version: the engine cannot know
    assert ours(**arguments()).frames.equal(before)
    assert ours.get_active_adapters() == ["default_0"]


def test_a_saved_pipeline_is_diffusers_own(ours, arguments, tmp_path):
    expected = ours(**arguments(prompt="A man walks.")).frames
    ours.save_pretrained(tmp_path)
    for kind in (Theirs, ConsisIDPipeline):
        loaded = kind.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert (loaded(**arguments(prompt="A man walks.")).frames - expected).abs().max() < LATENTS
    assert sum(file.stat().st_size for file in (tmp_path / "transformer").iterdir()) < 1.1 * sum(
        x.nbytes for x in ours.transformer.state_dict().values()
    )


def test_modules_are_let_go(components, arguments):
    pipeline = ConsisIDPipeline(**components)
    pipeline(**arguments())
    engine = weakref.ref(pipeline.engine)
    del pipeline
    gc.collect()
    assert engine() is None


def test_parts_that_a_call_does_not_need_may_be_missing(components, arguments):
    text = ConsisIDPipeline(**components | {"transformer": None, "vae": None})
    embeds, negative = text.encode_prompt("A man walks.", max_sequence_length=16)
    rest = ConsisIDPipeline(**components | {"text_encoder": None, "tokenizer": None})
    found = rest(**arguments(prompt_embeds=embeds, negative_prompt_embeds=negative)).frames
    assert (found - ConsisIDPipeline(**components)(**arguments(prompt="A man walks.")).frames).abs().max() < LATENTS


def test_modules_whose_weights_are_elsewhere_are_refused(components, arguments):
    with torch.device("meta"):
        empty = ConsisIDTransformer3DModel.from_config(components["transformer"].config)
    with pytest.raises(InputError, match="transformer's weights are not in memory"):
        ConsisIDPipeline(**components | {"transformer": empty})(**arguments())


def test_peft_layers_are_refused(components, arguments):
    from peft import LoraConfig

    components["transformer"].add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(InputError, match="PEFT's layers; give it as the checkpoint has it"):
        ConsisIDPipeline(**components)(**arguments())


@pytest.mark.parametrize("positions", [True, False])
def test_lengths_of_text(tiny_checkpoint, arguments, positions):
    """Where nothing is learned for a place of the text, any number of tokens is taken, as in diffusers."""
    components = small_components(tiny_checkpoint / "tokenizer", use_learned_positional_embeddings=positions)
    ours, theirs = ConsisIDPipeline(**components), Theirs(**components)
    given = {"prompt": "A man walks.", "max_sequence_length": 11}
    if positions:
        with pytest.raises(InputError, match="this model takes 16 tokens of text"):
            ours(**arguments(**given))
        default = ours(**arguments(prompt="A man walks.", max_sequence_length=226)).frames
        assert default.equal(ours(**arguments(prompt="A man walks.")).frames)
        return
    expected = theirs(**arguments(**given)).frames
    assert (ours(**arguments(**given)).frames - expected).abs().max() < LATENTS


def test_lengths_of_text_in_turn_make_an_engine_each_once(tiny_checkpoint, arguments, monkeypatch):
    made = []

    class Counted(ComponentEngine):
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            made.append(self.variant.transformer.max_text_seq_length)

    monkeypatch.setattr(parts, "ComponentEngine", Counted)
    components = small_components(tiny_checkpoint / "tokenizer", use_learned_positional_embeddings=False)
    ours = ConsisIDPipeline(**components)
    given = {"prompt": "A man walks.", "num_inference_steps": 1}
    for length in (11, 16, 11, 16):
        ours(**arguments(**given, max_sequence_length=length))
    assert made == [11, 16]
    kept = storages(held_by(ours))
    assert kept.keys() <= storages(weights_of(ours)).keys()

    for length in range(3, 11):
        ours.engine_for(length)
    assert len(ours._made) == parts.KEPT
    assert ours.engine_for(10) is ours.engine_for(10)

    old = weakref.ref(ours.transformer)
    ours.transformer = small_components(tiny_checkpoint / "tokenizer", seed=1, use_learned_positional_embeddings=False)[
        "transformer"
    ]
    del components
    ours(**arguments(**given, max_sequence_length=11))
    gc.collect()
    assert old() is None, "an engine of another length holds the transformer that was replaced"


def test_fusing_q_k_and_v_changes_nothing(ours, arguments):
    """Other pipelines of diffusers have these methods; its ConsisIDPipeline of 0.42 has not."""
    expected = ours(**arguments()).frames
    ours.fuse_qkv_projections()
    assert ours(**arguments()).frames.equal(expected)
    ours.unfuse_qkv_projections()
    assert ours(**arguments()).frames.equal(expected)
