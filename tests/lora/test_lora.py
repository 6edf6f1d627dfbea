"""LoRAs against diffusers with PEFT, in float32 on a CPU."""

import json
from dataclasses import replace

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from support.loras import MODULES, OPTIONS, PROMPT, both, latents, lora
from support.people import random_identity
from support.reference import compare, reference_pipeline

from consisid.engine import ConsisID
from consisid.engine.cli import main
from consisid.engine.errors import BackendError, DeviceMemoryError, InputError
from consisid.engine.variants import TINY

pytestmark = pytest.mark.slow


@pytest.fixture
def engine(shallow_folder) -> ConsisID:
    return ConsisID.open(shallow_folder)


@pytest.fixture
def pipeline(shallow_checkpoint):
    return reference_pipeline(shallow_checkpoint)


def test_a_lora_changes_the_video_and_goes_again(engine, pipeline):
    person, state = random_identity(TINY), lora(engine.checkpoint)
    before = latents(engine, person)
    both(engine, pipeline, lambda owner: owner.load_lora_weights(state))
    compare(engine, pipeline, person)
    changed = latents(engine, person)
    assert (changed - before).abs().max() > 0.1  # a thousand times what parity allows: it is not the checkpoint's video
    assert "15 tensors at 1" in engine.generate(person, PROMPT, **OPTIONS).stats.modes["lora"]
    engine.disable_lora()
    assert torch.equal(latents(engine, person), before)
    engine.enable_lora()
    assert torch.equal(latents(engine, person), changed)
    engine.unload_lora_weights()
    assert torch.equal(latents(engine, person), before)


def test_several_loras_with_weights(engine, pipeline):
    """The last that was loaded is the active one, as in diffusers, until set_adapters says which."""
    states = {name: lora(engine.checkpoint, seed, 2 + seed, MODULES[seed::2]) for seed, name in enumerate("ab")}

    def same_names():
        assert engine.get_active_adapters() == pipeline.get_active_adapters()
        assert engine.get_list_adapters() == pipeline.get_list_adapters()

    for name, state in states.items():
        both(engine, pipeline, lambda owner, name=name, state=state: owner.load_lora_weights(state, adapter_name=name))
        same_names()
    compare(engine, pipeline, random_identity(TINY))
    both(engine, pipeline, lambda owner: owner.set_adapters(["a", "b"], [0.7, -0.4]))
    same_names()
    compare(engine, pipeline, random_identity(TINY))
    both(engine, pipeline, lambda owner: owner.delete_adapters("b"))
    same_names()
    compare(engine, pipeline, random_identity(TINY))
    # The other one changes other modules, so PEFT cannot swap it.
    engine.load_lora_weights(states["b"], adapter_name="a", hotswap=True)
    pipeline.delete_adapters("a")
    pipeline.load_lora_weights(states["b"], adapter_name="a")
    same_names()
    compare(engine, pipeline, random_identity(TINY))
    both(engine, pipeline, lambda owner: owner.unload_lora_weights())
    for seed, name in enumerate("ab"):
        state = lora(engine.checkpoint, seed)
        both(engine, pipeline, lambda owner, name=name, state=state: owner.load_lora_weights(state, adapter_name=name))
    both(engine, pipeline, lambda owner: owner.set_adapters(["a", "b"], [0.7, -0.4]))  # of the same modules
    compare(engine, pipeline, random_identity(TINY))
    both(engine, pipeline, lambda owner: owner.delete_adapters("b"))
    same_names()
    compare(engine, pipeline, random_identity(TINY))


def test_fused_loras_stay(engine, pipeline):
    before = latents(engine)
    both(engine, pipeline, lambda owner: owner.load_lora_weights(lora(engine.checkpoint), adapter_name="a"))
    both(engine, pipeline, lambda owner: owner.fuse_lora(lora_scale=0.5))
    assert engine.num_fused_loras == pipeline.num_fused_loras == 1
    compare(engine, pipeline, random_identity(TINY))
    fused = latents(engine)
    engine.unload_lora_weights()
    assert torch.equal(latents(engine), fused)
    pipeline.unload_lora_weights()
    # The next one has the same name by itself, and is another.
    other = lora(engine.checkpoint, 1, modules=MODULES[::2])
    both(engine, pipeline, lambda owner: owner.load_lora_weights(other, adapter_name="a"))
    compare(engine, pipeline, random_identity(TINY))
    both(engine, pipeline, lambda owner: owner.fuse_lora())
    compare(engine, pipeline, random_identity(TINY))
    assert engine.fused_loras == pipeline.fused_loras == {"a"}
    engine.unload_lora_weights()
    engine.unfuse_lora()
    assert torch.equal(latents(engine), before)


def test_a_lora_is_fused_at_its_weight(engine, pipeline):
    """lora_scale times the weight that set_adapters gave it."""
    both(engine, pipeline, lambda owner: owner.load_lora_weights(lora(engine.checkpoint), adapter_name="a"))
    both(engine, pipeline, lambda owner: owner.set_adapters("a", 0.5))
    both(engine, pipeline, lambda owner: owner.fuse_lora(lora_scale=0.7))
    compare(engine, pipeline, random_identity(TINY))


def test_a_bias_is_scaled_as_its_matrices_are(engine):
    """As PEFT has it for LoraConfig(lora_bias=True): the layer of B as a whole, with its bias, times alpha / rank."""
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    weight, bias = (engine.checkpoint.tensor("transformer", f"proj_out.{name}") for name in ("weight", "bias"))
    base = torch.nn.Linear(*weight.shape[::-1])
    base.load_state_dict({"weight": weight, "bias": bias})
    layer = Linear(base, "x", LoraConfig(r=4, lora_alpha=2, lora_bias=True), r=4, lora_alpha=2, lora_bias=True)
    generator = torch.Generator().manual_seed(0)
    factors = {"lora_A.weight": layer.lora_A["x"].weight, "lora_B.weight": layer.lora_B["x"].weight}
    factors["lora_B.bias"] = layer.lora_B["x"].bias
    for factor in factors.values():
        factor.data = torch.randn(factor.shape, generator=generator)
    state = {f"transformer.proj_out.{name}": factor.data for name, factor in factors.items()}
    engine.load_lora_weights(state | {"transformer.proj_out.alpha": torch.tensor(2.0)})
    ((read, _),) = engine.loras
    changes = {name: change.delta(1.0) for name, change in read.changes.items()}
    x = torch.randn(3, weight.shape[1], generator=generator)
    with torch.no_grad():
        found = torch.nn.functional.linear(x, weight + changes["proj_out.weight"], bias + changes["proj_out.bias"])
        assert (found - layer(x)).abs().max() < 1e-4  # values of the order of ten


def test_what_is_switched_off_is_what_was_loaded(engine, pipeline):
    state = lora(engine.checkpoint, modules=MODULES[::2])
    both(engine, pipeline, lambda owner: owner.disable_lora())
    both(engine, pipeline, lambda owner: owner.load_lora_weights(state))
    both(engine, pipeline, lambda owner: owner.disable_lora())
    both(engine, pipeline, lambda owner: owner.unload_lora_weights())
    both(engine, pipeline, lambda owner: owner.load_lora_weights(state))
    assert engine.loras
    both(engine, pipeline, lambda owner: owner.set_adapters("default_0", {"transformer": 0.5}))
    compare(engine, pipeline, random_identity(TINY))


def test_a_change_that_was_cut_off_is_made_again(engine, monkeypatch):
    """An interrupt while weights are added up: the next run adds up all of them."""
    expected_without, weights = latents(engine), engine.weights
    engine.load_lora_weights(lora(engine.checkpoint))
    store, left = weights._resident, [5]

    def resident(key):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return store(key)

    with monkeypatch.context() as patch:
        patch.setattr(weights, "_resident", resident)
        with pytest.raises(KeyboardInterrupt):
            latents(engine)
    fresh = ConsisID.open(engine.folder)
    fresh.load_lora_weights(lora(engine.checkpoint))
    assert torch.equal(latents(engine), latents(fresh))
    engine.unload_lora_weights()
    assert torch.equal(latents(engine), expected_without)


def test_what_a_change_that_was_cut_off_should_have_taken_out_goes_with_the_next(engine, monkeypatch):
    """One LoRA is in the weights, another of other modules was to take its place, and then neither is wanted."""
    without = latents(engine)
    engine.load_lora_weights(lora(engine.checkpoint, modules=MODULES[::2]), adapter_name="a")
    latents(engine)
    engine.load_lora_weights(lora(engine.checkpoint, modules=MODULES[1::2]), adapter_name="b")

    def interrupted(changed):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.weights._store, "renew", interrupted)
        with pytest.raises(KeyboardInterrupt):
            latents(engine)
    engine.unload_lora_weights()
    assert torch.equal(latents(engine), without)


@pytest.mark.parametrize("form", ["alphas", "rslora", "old names", "kohya", "bias", "PEFT", "no prefix"])
def test_forms_of_files(engine, pipeline, tmp_path, form):
    """What diffusers and PEFT write, and have written; what only we take is said beside what it means."""
    state, metadata = lora(engine.checkpoint, modules=MODULES[4:]), {"format": "pt"}
    ours, theirs = state, state
    settings = {"r": 4, "lora_alpha": 6, "rank_pattern": {"ff.net.0.proj": 6, "ff.net.2": 6},
                "target_modules": list(MODULES[4:])}  # fmt: skip
    if form == "alphas":
        settings["alpha_pattern"] = {"ff.net.2": 3, "to_q": 8}
    elif form == "rslora":
        settings["use_rslora"] = True
    elif form == "old names":
        theirs = ours = {
            key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): value for key, value in state.items()
        }
    elif form == "kohya":
        module = "transformer.transformer_blocks.0.attn1.to_q"
        named = {key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): x for key, x in state.items()}
        ours = {key.replace("transformer.", "diffusion_model.", 1): x for key, x in named.items()}
        ours[f"{module}.alpha"] = torch.tensor(2.0)
        theirs = {**state, f"{module}.lora_B.weight": state[f"{module}.lora_B.weight"] * 2 / 4}
    elif form == "bias":
        # Every module of the file has to have one: that is how diffusers reads it.
        keys = [f"transformer.{module}" for module in MODULES[-3:]]
        ours = {key: value for key, value in state.items() if key.startswith(tuple(keys))}
        ours |= {f"{key}.lora_B.bias": torch.full((len(state[f"{key}.lora_B.weight"]),), 0.3) for key in keys}
        theirs = ours
    elif form == "PEFT":
        ours = {f"base_model.model.{key.removeprefix('transformer.')}": value for key, value in state.items()}
    else:
        ours = {key.removeprefix("transformer."): value for key, value in state.items()}
    if form in ("alphas", "rslora"):
        metadata["lora_adapter_metadata"] = json.dumps({f"transformer.{key}": v for key, v in settings.items()})
    for name, tensors in (("ours", ours), ("theirs", theirs)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "pytorch_lora_weights.safetensors", metadata)
    if form == "PEFT":
        with pytest.raises(InputError, match=r"put PEFT's adapter_config.json beside the file"):
            engine.load_lora_weights(tmp_path / "ours")
        (tmp_path / "ours" / "adapter_config.json").write_text(
            json.dumps({"r": 4, "lora_alpha": 2, "peft_type": "LORA"})
        )
        theirs = {key: value * 2 / len(state[key.replace("lora_B", "lora_A")]) if "lora_B" in key else value
                  for key, value in state.items()}  # fmt: skip
        save_file(theirs, tmp_path / "theirs" / "pytorch_lora_weights.safetensors", metadata)
    engine.load_lora_weights(tmp_path / "ours")
    pipeline.load_lora_weights(str(tmp_path / "theirs"))
    compare(engine, pipeline, random_identity(TINY))


def test_out_of_memory_while_weights_are_added_up(engine, monkeypatch):
    """It is one more thing that a smaller plan may help with, and that loses nothing."""
    before = latents(engine)
    engine.load_lora_weights(lora(engine.checkpoint))

    def full(key):
        raise torch.OutOfMemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(engine.weights, "_resident", full)
        with pytest.raises(DeviceMemoryError, match="The next smaller plan takes"):
            latents(engine)
    assert (latents(engine) - before).abs().max() > 0.1  # with the LoRA, as above


def test_a_run_that_was_cut_off_goes_on_with_its_own_lora_only(engine, tmp_path):
    state, file = lora(engine.checkpoint), tmp_path / "steps.safetensors"
    engine.load_lora_weights(state)
    expected = latents(engine)

    def stop(_engine, step, *_):
        if step == 1:
            raise KeyboardInterrupt
        return {}

    options = {"checkpoint": file, "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        latents(engine, callback_on_step_end=stop, **options)
    assert file.exists()
    engine.set_adapters("default_0", 0.5)
    with pytest.raises(InputError, match="of another request"):
        latents(engine, **options)
    engine.set_adapters("default_0")
    assert torch.equal(latents(engine, **options), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "is empty"),
        (lambda s: {**s, "transformer.x.lora_A.weight": torch.ones(2, 2)}, "one of lora_A and lora_B only for x"),
        (lambda s: {k.replace("proj_out", "text_encoder.q"): v for k, v in s.items()}, "transformer does not have"),
        (lambda s: {k: v[:, :3] if "lora_A" in k else v for k, v in s.items()}, "it is of another model"),
        (lambda s: {**s, "transformer.proj_out.lora_magnitude_vector": torch.ones(2)}, "DoRA"),
        (lambda s: {**s, "transformer.proj_out.dora_scale": torch.ones(2)}, "DoRA"),
        (lambda s: s | {k.replace(".weight", ".b.weight"): v for k, v in s.items()}, "several LoRAs in one file"),
        (lambda s: {k.replace("transformer", "base_model.model"): v for k, v in s.items()}, "does not say its alpha"),
        (lambda s: {**s, "transformer.proj_out.lora_B.bias": torch.ones(2)}, r"has \[2\] for proj_out.bias"),
        (
            lambda s: {
                **s,
                "transformer.perceiver_cross_attention.0.to_q.lora_A.weight": torch.ones(2, 192),
                "transformer.perceiver_cross_attention.0.to_q.lora_B.weight": torch.ones(128, 2),
                "transformer.perceiver_cross_attention.0.to_q.lora_B.bias": torch.ones(128),
            },
            r"to_q.bias, which this model's transformer does not have",
        ),
    ],
)
def test_what_is_no_lora_is_refused_and_changes_nothing(engine, change, message):
    state = lora(engine.checkpoint, modules=["proj_out"])
    engine.load_lora_weights(state, "good")
    with pytest.raises(InputError, match=message) as found:
        engine.load_lora_weights(change(state), "bad")
    assert "\n" not in str(found.value)
    assert engine.get_list_adapters() == {"transformer": ["good"]}
    assert engine.get_active_adapters() == ["good"]


def test_names_and_files_that_are_wrong(engine, tmp_path):
    state = lora(engine.checkpoint, modules=["proj_out"])
    engine.load_lora_weights(state, "a")
    torch.save(state, tmp_path / "a.bin")
    for folder, names in (("empty", []), ("two", ["x", "y"])):
        (tmp_path / folder).mkdir()
        for name in names:
            save_file(state, tmp_path / folder / f"{name}.safetensors")
    engine.fuse_lora()
    with pytest.raises(InputError, match=r"The LoRA a is fused; call unfuse_lora\(\)"):
        engine.load_lora_weights(state, "a", hotswap=True)
    engine.unfuse_lora()
    for call, message in (
        (lambda: engine.load_lora_weights(state, "a"), "called a is loaded already"),
        (lambda: engine.load_lora_weights(state, "b", hotswap=True), "called b is not loaded"),
        (lambda: engine.set_adapters("b"), "No LoRA called b is loaded, loaded is a;"),
        (lambda: engine.set_adapters(["a"], [1.0, 2.0]), "2 weights were given for 1 LoRAs"),
        (lambda: engine.delete_adapters(["a", "b"]), "No LoRA called b"),
        (lambda: engine.set_adapters("a", {"transformer": {"blocks": "x"}}), "is no weight"),
        (lambda: engine.fuse_lora(["text_encoder"]), "have no LoRAs"),
        (lambda: engine.load_lora_weights(tmp_path / "empty"), "should have one .safetensors file, and has none"),
        (lambda: engine.load_lora_weights(tmp_path / "two"), r"has several \(x.safetensors, y.safetensors\)"),
        (lambda: engine.load_lora_weights(tmp_path / "two", weight_name="z.safetensors"), "has no z.safetensors"),
        (lambda: engine.load_lora_weights("typo.safetensors"), "There is no LoRA at typo.safetensors"),
        (lambda: engine.load_lora_weights("nobody/lora", local_files_only=True), "could not be fetched from the hub"),
        (lambda: engine.load_lora_weights(tmp_path / "none.safetensors"), "There is no LoRA at .*none.safetensors"),
        (lambda: engine.load_lora_weights(tmp_path / "a.bin"), "a.bin cannot be read as a LoRA"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert engine.get_list_adapters() == {"transformer": ["a"]}
    engine.load_lora_weights(state)
    engine.load_lora_weights(state)
    assert engine.get_list_adapters() == {"transformer": ["a", "default_0", "default_1"]}


@pytest.mark.parametrize(("module", "takes"), [("proj_out", False), ("transformer_blocks.0.attn1.to_q", True)])
def test_engines_that_hold_their_weights_say_what_helps(engine, module, takes):
    """One graph of a folder may be an engine of TensorRT: "auto" keeps what is fastest."""
    graphs = {**engine.manifest.graphs, "head": replace(engine.manifest.graphs["head"], backend="tensorrt")}
    engine.manifest = replace(engine.manifest, graphs=graphs)
    state = lora(engine.checkpoint, modules=[module])
    if takes:
        engine.load_lora_weights(state)
        return
    with pytest.raises(BackendError, match=r"tensorrt holds the weights of head, .* or with --backend inductor"):
        engine.load_lora_weights(state)
    assert engine.get_list_adapters() == {}


@pytest.mark.parametrize("online", [True, False])
def test_a_file_on_the_hub(online, engine, tmp_path, monkeypatch):
    """The names that diffusers and PEFT write, then what the caller names; PEFT's settings where they are."""
    asked = []

    def download(repository, name, **options):
        asked.append(name)
        assert (repository, options) == ("somebody/snow", {"revision": "v1"})
        if not (tmp_path / name).exists():
            raise (EntryNotFoundError if online else LocalEntryNotFoundError)("404")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    where = {"subfolder": "step", "revision": "v1"}
    none = r"has no step/pytorch_lora_weights.safetensors or adapter_model" if online else "could not be fetched"
    with pytest.raises(InputError, match=none):
        engine.load_lora_weights("somebody/snow", **where)
    (tmp_path / "step").mkdir()
    state = lora(engine.checkpoint, modules=["proj_out"])
    peft = {key.replace("transformer.", "base_model.model.", 1): value for key, value in state.items()}
    save_file(peft, tmp_path / "step" / "adapter_model.safetensors")
    (tmp_path / "step" / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2}))
    engine.load_lora_weights("somebody/snow", **where)
    assert engine.loras[0][0].changes["proj_out.weight"].scale == 0.5
    save_file(state, tmp_path / "other.safetensors")
    engine.load_lora_weights("somebody/snow", weight_name="other.safetensors", revision="v1")
    assert engine.loras[0][0].changes["proj_out.weight"].scale == 1.0
    assert asked[-3:] == ["step/adapter_model.safetensors", "step/adapter_config.json", "other.safetensors"]


def test_the_command_takes_loras(shallow_folder, engine, tmp_path, capsys):
    person, output = tmp_path / "me.safetensors", tmp_path / "out.mp4"
    random_identity(TINY).save(person)
    save_file(lora(engine.checkpoint), tmp_path / "snow.safetensors")
    arguments = [str(shallow_folder), "--image", str(person), "--prompt", PROMPT, "--output", str(output),
                 "--steps", "1", "--num-frames", "9"]  # fmt: skip
    assert main([*arguments, "--lora", str(tmp_path / "snow.safetensors"), "--lora-weight", "0.5"]) == 0
    assert output.exists()
    output.unlink()
    assert main([*arguments, "--lora", str(tmp_path / "rain.safetensors")]) == 2
    assert main([*arguments, "--lora-weight", "0.5"]) == 2
    assert "1 weights were given for 0 LoRAs" in capsys.readouterr().err
    assert not output.exists()
