"""LoRA files as they are found: names, folders, options and numbers that diffusers takes, and what may not hang."""

import json
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.loras import MODULES, both, latents, lora

from consisid.engine import ConsisID
from consisid.engine.errors import InputError
from consisid.engine.lora.files import HUB, LoraSettings
from consisid.engine.lora.weights import Lora
from consisid.engine.util.parsing import Unreadable

pytestmark = pytest.mark.slow

BLOCKS = MODULES[6:13]


@pytest.fixture(scope="module")
def folder_engine(shallow_folder):
    return ConsisID.open(shallow_folder)


@pytest.fixture
def engine(folder_engine):
    """Without LoRAs: those of the test before are gone."""
    folder_engine.unload_lora_weights()
    folder_engine.unfuse_lora()
    return folder_engine


@pytest.fixture
def pipeline(tiny_reference):
    yield tiny_reference
    tiny_reference.unload_lora_weights()


def changes(engine):
    """What the only active LoRA does, by tensor."""
    ((read, weight),) = engine.loras
    return {name: change.delta(weight) for name, change in read.changes.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def flat(state, prefix="lora_unet_", alpha=None):
    """With the names of kohya's scripts."""
    found = {}
    for key, value in state.items():
        module, side = key.removeprefix("transformer.").removesuffix(".weight").rsplit(".lora_", 1)
        name = prefix + module.replace(".", "_")
        found[f"{name}.lora_{'down' if side == 'A' else 'up'}.weight"] = value
        if alpha is not None:
            found[f"{name}.alpha"] = alpha.clone()
    return found


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_", "base_model.model.lora_unet_"])
def test_names_with_underscores(engine, tmp_path, prefix):
    """lora_unet_transformer_blocks_0_attn1_to_q is a module's name with _ for every dot, and others have _ already."""
    state = lora(engine.checkpoint)
    engine.load_lora_weights(state)
    expected = changes(engine)
    assert len(expected) == len(MODULES)
    save_file(flat(state, prefix, torch.tensor(4.0)), tmp_path / "kohya.safetensors")
    engine.load_lora_weights(tmp_path / "kohya.safetensors", "kohya")
    found = changes(engine)
    for name, delta in expected.items():
        rank = 6 if "ff" in name else 4
        torch.testing.assert_close(found[name], delta * 4 / rank)
    with pytest.raises(InputError, match=r"changes transformer_blocks_99_to_q.weight, which this model's transformer"):
        engine.load_lora_weights({k.replace("blocks_0_attn1", "blocks_99"): v for k, v in flat(state).items()})


def test_what_belongs_to_other_components_is_left_out(engine, pipeline):
    """As in diffusers, and said; a file that has nothing for the transformer is refused."""
    state = lora(engine.checkpoint)
    text = {
        f"text_encoder.encoder.block.0.layer.0.SelfAttention.q.lora_{side}.weight": torch.ones(4, 4) for side in "AB"
    }
    engine.load_lora_weights(state)
    alone, expected = changes(engine), latents(engine)
    with pytest.warns(UserWarning, match=r"The LoRA changes text_encoder too; .* and that was left out"):
        engine.load_lora_weights({**text, **state}, "with text")
    assert same(changes(engine), alone)
    pipeline.load_lora_weights({**text, **state})
    assert torch.equal(latents(engine), expected)
    kohya = {"lora_te_block_0_q.lora_down.weight": torch.ones(4, 4), "lora_te1_block_0_q.alpha": torch.ones(1)}
    with pytest.warns(UserWarning, match="lora_te, lora_te1 too"):
        engine.load_lora_weights({**flat(state), **kohya}, "kohya")
    assert same(changes(engine), alone)
    for only in (text, kohya):
        with pytest.raises(InputError, match=r"changes (text_encoder|lora_te, lora_te1) only, not the transformer"):
            engine.load_lora_weights(only, "text")


def test_a_file_in_a_folder_in_a_folder(engine, pipeline, tmp_path):
    state = lora(engine.checkpoint, modules=["proj_out"])
    (tmp_path / "step" / "500").mkdir(parents=True)
    save_file(state, tmp_path / "step" / "500" / "snow.safetensors")
    save_file(lora(engine.checkpoint, 1), tmp_path / "other.safetensors")
    (tmp_path / "._other.safetensors").write_bytes(b"\0\5\26\7Mac OS X")
    ways = [
        {"weight_name": "step/500/snow.safetensors"},
        {"weight_name": "500/snow.safetensors", "subfolder": "step"},
        {"subfolder": "step/500"},
    ]
    for i, where in enumerate(ways):
        engine.load_lora_weights(tmp_path, f"a{i}", **where)
        assert engine.loras[0][0].changes.keys() == {"proj_out.weight"}
    pipeline.load_lora_weights(str(tmp_path), weight_name="step/500/snow.safetensors")
    engine.load_lora_weights(tmp_path)
    assert len(engine.loras[0][0].changes) == len(MODULES)
    with pytest.raises(InputError, match=r"has no step/snow.safetensors; there is other.safetensors\."):
        engine.load_lora_weights(tmp_path, weight_name="step/snow.safetensors")


def test_options_of_diffusers(engine, pipeline, tmp_path):
    state, file = lora(engine.checkpoint, modules=BLOCKS), tmp_path / "x.safetensors"
    save_file(state, file)
    options = {
        "low_cpu_mem_usage": True, "use_safetensors": True, "local_files_only": None, "token": None, "proxies": None,
        "cache_dir": None, "force_download": False, "revision": None, "subfolder": None,
    }  # fmt: skip
    both(engine, pipeline, lambda owner: owner.load_lora_weights(str(file), **options))
    both(engine, pipeline, lambda owner: owner.load_lora_weights(state, adapter_name="b", low_cpu_mem_usage=True))
    for wrong, message in (
        ({"use_safetensors": False}, "asks for pickled weights"),
        ({"proxies": {"http": "x"}}, "set HTTPS_PROXY"),
        ({"weightname": "x"}, f"weightname: no such option of load_lora_weights; there are {HUB[0]}"),
        ({"weight_name": 3}, "weight_name=3 is no name"),
        ({"subfolder": ["x"]}, "is no name"),
        ({"adapter_name": 5}, "adapter_name=5 is no text"),
    ):
        with pytest.raises(InputError, match=message):
            engine.load_lora_weights(file, **wrong)


@pytest.mark.parametrize("where", [{"weight_name": "x" * 300}, {"subfolder": "x" * 300}, {"subfolder": "x/" * 3000}])
def test_names_that_no_system_takes(engine, tmp_path, where):
    with pytest.raises(InputError, match=r"There is no LoRA at .* \(File name too long\)") as found:
        engine.load_lora_weights(tmp_path, **where)
    assert len(str(found.value)) < 1100


@pytest.mark.parametrize("source", [None, 3, [("a", 1)], b"x.safetensors", object()])
def test_what_is_no_source(engine, source):
    with pytest.raises(InputError, match="A LoRA is a path, a hub id, or tensors by name, not"):
        engine.load_lora_weights(source)


KEY = "transformer.proj_out"


@pytest.mark.parametrize("alpha", [2, 2.0, np.float32(2), np.array([2]), torch.tensor([[2.0]]), torch.full((4,), 2)])
def test_an_alpha_in_any_form(engine, alpha):
    """One number, in whatever a script has put it."""
    state = lora(engine.checkpoint, modules=["proj_out"])
    engine.load_lora_weights({**state, f"{KEY}.alpha": alpha})
    assert engine.loras[0][0].changes["proj_out.weight"].scale == 0.5


def test_arrays(engine):
    """Of NumPy, in half precision too, and what a caller goes on training."""
    state = lora(engine.checkpoint)
    engine.load_lora_weights(state)
    expected = changes(engine)
    trained = {key: value.clone().requires_grad_() for key, value in state.items()}
    for name, form in (("arrays", {k: v.numpy() for k, v in state.items()}), ("trained", trained)):
        engine.load_lora_weights(form, name)
        assert same(changes(engine), expected)
    engine.load_lora_weights({k: v.half().numpy() for k, v in state.items()}, "half")
    assert all((delta - expected[name]).abs().max() < 1e-2 for name, delta in changes(engine).items())
    with torch.no_grad():
        trained[f"{KEY}.lora_B.weight"].zero_()
    engine.set_adapters("trained")
    assert same(changes(engine), expected)


DOWN, UP = f"{KEY}.lora_A.weight", f"{KEY}.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{KEY}.alpha": torch.tensor([1.0, 2.0])}, "several values for transformer.proj_out.alpha; an alpha is one"),
        ({f"{KEY}.alpha": float("nan")}, "no finite number"),
        ({f"{KEY}.alpha": "four"}, "no finite number"),
        ({f"{KEY}.alpha": torch.ones(0)}, "no finite number"),
        ({f"{KEY}.alpha": torch.ones(1, device="meta")}, "no finite number"),
        ({DOWN: [[1.0]]}, r"no tensor of floats \(list\)"),
        ({DOWN: None}, r"no tensor of floats \(NoneType\)"),
        ({DOWN: torch.ones(4, 192, dtype=torch.int8)}, r"no tensor of floats \(torch.int8\)"),
        ({DOWN: torch.ones(4, 192, device="meta")}, "no tensor of floats"),
        ({DOWN: torch.ones(4, 192).to_sparse()}, "no tensor of floats"),
        ({DOWN: np.array(["x"])}, "no tensor of floats"),
        ({DOWN: torch.tensor(1.0)}, r"has \[\] for transformer.proj_out.lora_A.weight"),
        ({DOWN: torch.ones(0, 192), UP: torch.ones(64, 0)}, r"has \[0, 192\]"),
        ({DOWN: torch.full((4, 192), torch.inf)}, "numbers that are not finite in transformer.proj_out.lora_A"),
        ({UP: torch.full((64, 4), torch.nan)}, "numbers that are not finite in transformer.proj_out.lora_B"),
        ({DOWN: torch.ones(3, 192)}, "it is of another model"),
        ({7: torch.ones(1)}, "a tensor called 7, which is no name"),
        ({"x" * 10**6: torch.ones(1)}, "which is no name in a LoRA"),
        ({"transformer." * 10**5: torch.ones(1)}, "which is no name in a LoRA"),
        ({"a\nb\x1b[2J": torch.ones(1)}, "which is no part of a LoRA"),
        ({".lora_A.weight": torch.ones(1, 1)}, "no part of a LoRA"),
    ],
)
def test_numbers_and_names_that_are_wrong(engine, change, message):
    with pytest.raises(InputError, match=message) as found:
        engine.load_lora_weights({**lora(engine.checkpoint, modules=["proj_out"]), **change})
    assert str(found.value).isprintable()
    assert len(str(found.value)) < 1100
    assert engine.get_list_adapters() == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (b"[" * 100_000, "cannot be read as a LoRA"),
        (b"\xff\xfe{}", "cannot be read as a LoRA"),
        (b"[1]", "cannot be read as a LoRA"),
        (b'"x"', "cannot be read as a LoRA"),
        (b'{"lora_alpha": "4"}', "lora_alpha: .*this is '4'"),
        (b'{"lora_alpha": [4]}', "lora_alpha"),
        (b'{"lora_alpha": 1e400}', "cannot be read as a LoRA"),
        (b'{"lora_alpha": NaN}', "cannot be read as a LoRA"),
        (b'{"lora_alpha": 4, "use_rslora": "yes"}', "use_rslora"),
        (b'{"lora_alpha": 4, "alpha_pattern": ["a"]}', "alpha_pattern"),
        (b'{"lora_alpha": 4, "alpha_pattern": {"a": null}}', "alpha_pattern"),
        (b'{"lora_alpha": 4, "alpha_pattern": {"(a+)+b": 4}}', r"alpha_pattern has '\(a\+\)\+b', which is no name"),
        (b'{"use_dora": true, "lora_alpha": 4}', "is a DoRA"),
        (b'{"lora_alpha": 4, "x": "' + b"y" * (1 << 20) + b'"}', "more than 1 MiB"),
        (b"", "cannot be read as a LoRA"),
    ],
)
def test_settings_that_are_wrong(engine, tmp_path, settings, message):
    """PEFT's file beside the LoRA."""
    state = lora(engine.checkpoint, modules=["proj_out"])
    peft = {key.replace("transformer.", "base_model.model.", 1): value for key, value in state.items()}
    save_file(peft, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes(settings)
    with pytest.raises(InputError, match=message) as found:
        engine.load_lora_weights(tmp_path)
    assert str(found.value).isprintable()
    assert len(str(found.value)) < 600


def test_patterns_are_names_and_cannot_hang(engine, tmp_path):
    """In the header as well. (a+)+$ against a name of 40 letters takes a regular expression years."""
    settings = LoraSettings.read({"lora_alpha": 6, "alpha_pattern": {
        "^transformer_blocks.0.attn1.to_q": 1, "attn1.to_q": 2, r"ff\.net\.2$": 3, "attn": 7}})  # fmt: skip
    modules = {"transformer_blocks.0.attn1.to_q": 1, "transformer_blocks.1.attn1.to_q": 2, "attn1.to_q": 2,
               "transformer_blocks.3.ff.net.2": 3, "transformer_blocks.3.ff.net.20": 6, "xattn1.to_q": 6,
               "transformer_blocks.0.attn1.to_k": 6, "attn": 7}  # fmt: skip
    assert {module: settings.scale(module, 1, None) for module in modules} == modules
    state = lora(engine.checkpoint, modules=["proj_out"])
    for pattern in ("(a+)+$", "(.*.*.*)*x", "to_q|to_k", "[a-z]+", "", "^", "a b"):
        stated = {"transformer.lora_alpha": 4, "transformer.alpha_pattern": {pattern: 4}}
        save_file(state, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(stated)})
        start = time.monotonic()
        with pytest.raises(InputError, match="which is no name of a module"):
            engine.load_lora_weights(tmp_path / "x.safetensors")
        assert time.monotonic() - start < 5
    with pytest.raises(Unreadable):
        LoraSettings.read({"alpha_pattern": {"a(b": 1}})


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff" * 8, b"\xff" * 100, b"\x08" + bytes(7) + b"[[[[[[[[", b"\x02" + bytes(7) + b"{}"]
)
def test_files_that_are_no_safetensors(engine, tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read as a LoRA|is empty"):
        engine.load_lora_weights(tmp_path / "x.safetensors")


def test_weights_by_module_as_in_diffusers(engine, pipeline):
    """The first part of a name that fits counts; what none fits has 1. Another component's weights are left out."""
    state = lora(engine.checkpoint, modules=BLOCKS)
    both(engine, pipeline, lambda owner: owner.load_lora_weights(state, adapter_name="a"))
    engine.set_adapters("a")
    whole = changes(engine)
    for weights in (
        {"transformer": {"transformer_blocks.0": 0.5, "to_k": -2.0, "attn1": 0.25}},
        {"transformer": {}},
        [{"transformer": {"blocks": 0.5}}],
        {"transformer": 0.5, "text_encoder": 3.0},
        {"text_encoder": 3.0},
        {"transformer": None},
        [None],
        np.float32(0.5),
    ):
        pipeline.set_adapters("a", weights if not isinstance(weights, np.floating) else float(weights))
        if isinstance(weights, dict) and "text_encoder" in weights:
            with pytest.warns(UserWarning, match="adapter_weights has 'text_encoder'; only the transformer has LoRAs,"):
                engine.set_adapters("a", weights)
        else:
            engine.set_adapters("a", weights)
        found, scales = changes(engine), {}
        for name, module in pipeline.transformer.named_modules():
            if hasattr(module, "scaling") and "a" in module.scaling:
                scales[f"{name}.weight"] = module.scaling["a"]
        assert scales.keys() == found.keys()
        for name, scale in scales.items():
            torch.testing.assert_close(found[name], whole[name] * scale)


def test_weights_by_module_stay_when_fused_and_go_again(engine):
    state = lora(engine.checkpoint, modules=BLOCKS)
    engine.load_lora_weights(state, "a")
    plain = changes(engine)
    engine.set_adapters("a", {"transformer": {"attn1": 0.5}})
    half = changes(engine)
    assert not same(half, plain)
    before = engine.loras
    assert engine.loras == before  # the same objects: weights are added up once
    engine.fuse_lora()
    assert same(changes(engine), half)
    engine.unfuse_lora()
    engine.set_adapters("a")
    assert same(changes(engine), plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.set_adapters("a", float("nan")), "adapter_weights=nan is no weight"),
        (lambda e: e.set_adapters("a", "0.5"), "adapter_weights='0.5' is no weight"),
        (lambda e: e.set_adapters("a", torch.ones(2)), "is no weight"),
        (lambda e: e.set_adapters("a", 10**400), "is no weight"),
        (lambda e: e.set_adapters("a", {"transformer": {3: 1.0}}), "has names that are no text"),
        (lambda e: e.set_adapters("a", {"transformer": {"x": [1]}}), r"adapter_weights=\[1\] is no weight"),
        (lambda e: e.set_adapters(None), "None is no name of a LoRA"),
        (lambda e: e.set_adapters([["a"]]), r"\['a'\] is no name of a LoRA"),
        (lambda e: e.delete_adapters(5), "5 is no name of a LoRA"),
        (lambda e: e.fuse_lora(lora_scale=float("inf")), "lora_scale=inf is no weight"),
        (lambda e: e.fuse_lora(lora_scale="1"), "lora_scale='1' is no weight"),
        (lambda e: e.fuse_lora(components=None), "components=None have no LoRAs"),
        (lambda e: e.fuse_lora(adapter_names=[{}]), r"\{\} is no name of a LoRA"),
    ],
)
def test_methods_with_what_they_do_not_take(engine, call, message):
    engine.load_lora_weights(lora(engine.checkpoint, modules=["proj_out"]), "a")
    before = engine.loras
    with pytest.raises(InputError, match=message):
        call(engine)
    assert engine.loras == before


def test_random_weights_take_names_with_underscores(tmp_path):
    """A folder without a checkpoint knows its modules too."""
    from consisid.engine.checkpoint.random_weights import RandomWeights
    from consisid.engine.variants import TINY

    checkpoint = RandomWeights(tmp_path, TINY, 0)
    rows = len(checkpoint.tensor("transformer", "proj_out.weight"))
    factors = {"down": torch.ones(2, 192), "up": torch.ones(rows, 2)}
    state = {f"lora_unet_proj_out.lora_{side}.weight": factor for side, factor in factors.items()}
    assert Lora.read(state, checkpoint).changes.keys() == {"proj_out.weight"}
