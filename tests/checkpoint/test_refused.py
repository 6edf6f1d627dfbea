"""A build opens all that a video needs before it compiles anything: what could not run is refused, in one sentence."""

import json
import os
from dataclasses import fields
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.files import edit, point, replace, truncate

from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.checkpoint.reading import FACE_FILES, Checkpoint
from consisid.engine.configs import TextConfig, TransformerConfig, VaeConfig
from consisid.engine.errors import CheckpointError, ConsisIDError, InputError
from consisid.export import build
from consisid.export.check import check_graphs, check_tensors, run_without_data
from consisid.export.cli import main

pytestmark = pytest.mark.slow

NAME = "diffusion_pytorch_model"
FILES = {
    "scheduler/scheduler_config.json", "tokenizer/spiece.model", "text_encoder/config.json", "vae/config.json",
    "transformer/config.json", "text_encoder/model.safetensors", f"vae/{NAME}.safetensors",
    f"transformer/{NAME}.safetensors", *(f"face_encoder/{name}" for name in FACE_FILES.values()),
}  # fmt: skip
DAMAGE = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: replace(file, b""),
    "truncated": truncate,
    "pointer": point,
    "noise": lambda file: replace(file, b"\xff" * 200),
    "nested": lambda file: replace(file, b"[" * 100_000),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.fixture(scope="module", autouse=True)
def run_once():
    """A network runs without data once for each of its configurations and inputs: most cases change neither."""
    done = set()

    def run(graph):
        make = partial(graph.make)
        key = make.func, make.args, tuple(sorted(make.keywords.items())), repr(graph.inputs)
        if key not in done:
            run_without_data(graph)
            done.add(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consisid.export.check.run_without_data", run)
        yield


def refused(folder, tmp_path, monkeypatch, match=""):
    """The message of the refusal; nothing was compiled and nothing is left."""
    monkeypatch.setattr("consisid.export.entries.compile_graph", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ConsisIDError, match=match) as caught:
        build(folder, tmp_path / "engine", backend="eager")
    message = str(caught.value)
    assert len(message.replace(str(tmp_path), "")) <= 400
    assert "\n" not in message
    assert not [path for path in tmp_path.iterdir() if "engine" in path.name]
    return message


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_file_that_a_video_needs(folder, tmp_path, monkeypatch, name):
    whole = (folder / name).read_bytes()
    for kind, damage in DAMAGE.items():
        damage(folder / name)
        message = refused(folder, tmp_path, monkeypatch)
        # Of a folder without weights the folder is named.
        assert name in message or (name.endswith(".safetensors") and str(folder / name.split("/")[0]) in message), kind
        assert ("git lfs pull" in message) == (kind == "pointer")
        if (folder / name).is_dir():
            (folder / name).rmdir()
        replace(folder / name, whole)


def set_to(value, *path):
    def change(values):
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


NUMBERS = [0, -1, 3, 10**6, 0.5, None, "3"]
CONFIGS = {"transformer": TransformerConfig, "vae": VaeConfig, "text_encoder": TextConfig}


@pytest.mark.filterwarnings("ignore:.*leaves out")
@pytest.mark.parametrize("part", CONFIGS)
def test_no_number_of_a_configuration_is_trusted(folder, tmp_path, part):
    """Each in turn becomes each of NUMBERS: a refusal, or networks that fit the tensors and run."""
    file = folder / part / "config.json"
    original, refusals = json.loads(file.read_text()), 0
    cases = [(field.name, value) for field in fields(CONFIGS[part]) for value in NUMBERS]
    for name, value in cases:
        replace(file, json.dumps(original | {name: value}).encode())
        try:
            checkpoint = Checkpoint(folder)
            check_tensors(checkpoint)
            check_graphs(checkpoint)
        except ConsisIDError as error:
            refusals += 1
            assert len(str(error).replace(str(tmp_path), "")) <= 400, (name, value)  # noqa: PT017
    assert refusals > 0.6 * len(cases)


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("transformer/config.json", set_to(10**6, "sample_height"), "sample_height: .*less than or equal to 2048"),
        ("transformer/config.json", set_to(10**6, "sample_frames"), "sample_frames: .*less than or equal to 4096"),
        (
            "transformer/config.json",
            set_to(14, "sample_height"),
            "pos_embedding .* is .*, and its config.json makes it",
        ),
        ("transformer/config.json", set_to("gelu", "activation_fn"), "activation_fn has to be gelu-approximate"),
        ("transformer/config.json", set_to(3.5, "num_layers"), "num_layers: .*integer"),
        ("transformer/config.json", set_to(5, "num_layers"), "no tensor called transformer_blocks.4"),
        ("transformer/config.json", set_to(0, "cross_attn_interval"), "cross_attn_interval: .*greater than"),
        ("transformer/config.json", set_to(4, "LFE_num_scale"), "hidden states of the face tower .* differ: 5 and 4"),
        (
            "transformer/config.json",
            lambda v: (v.pop("is_train_face"), v.update(_class_name="CogVideoXTransformer3DModel")),
            "holds a CogVideoXTransformer3DModel, not a ConsisID transformer",
        ),
        ("transformer/config.json", set_to(2, "patch_size_t"), "patches over 2 latent frames .*rotary positions"),
        ("transformer/config.json", set_to(32, "ofs_embed_dim"), "ofs_embed_dim and time_embed_dim differ: 32 and 64"),
        ("transformer/config.json", lambda v: v.clear(), "holds a None, not a ConsisID"),
        ("vae/config.json", set_to(0.0, "scaling_factor"), "scaling_factor: .*greater than"),
        ("vae/config.json", set_to(7, "norm_num_groups"), "16 is no multiple of norm_num_groups 7"),
        ("vae/config.json", set_to([1.0] * 16, "latents_mean"), "latents_mean has to be None"),
        ("vae/config.json", set_to(8, "temporal_compression_ratio"), "of transformer and VAE differ: 4 and 8"),
        (
            "text_encoder/config.json",
            set_to("gelu", "feed_forward_proj"),
            "feed_forward_proj: .*'gated-gelu' or 'relu'",
        ),
        (
            "text_encoder/config.json",
            set_to(300, "vocab_size"),
            "embed.* is |shared.* is |no tensor|of different models",
        ),
        (
            "scheduler/scheduler_config.json",
            set_to(10**9, "num_train_timesteps"),
            "'num_train_timesteps' is 1000000000",
        ),
        ("scheduler/scheduler_config.json", set_to("x", "beta_start"), "cannot be used"),
        ("scheduler/scheduler_config.json", set_to("ConsisIDPipeline", "_class_name"), "diffusers does not have"),
        ("scheduler/scheduler_config.json", set_to(["list"], "_class_name"), "diffusers does not have"),
    ],
)
def test_configurations_that_are_wrong(folder, tmp_path, monkeypatch, file, change, reason):
    edit(folder / file, change)
    refused(folder, tmp_path, monkeypatch, reason)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_numbers_that_are_none(folder, tmp_path, monkeypatch, number):
    file = folder / "vae/config.json"
    replace(file, file.read_text().replace('"scaling_factor": 0.7', f'"scaling_factor": {number}').encode())
    refused(folder, tmp_path, monkeypatch, r"vae/config.json cannot be (used|read)")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_where_nothing_reads_them(folder, tmp_path, monkeypatch, number):
    """JSON has none of these."""
    file = folder / "vae/config.json"
    replace(file, file.read_text().replace('"scaling_factor"', f'"other": {number}, "scaling_factor"', 1).encode())
    refused(folder, tmp_path, monkeypatch, r"vae/config.json cannot be read")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("proj_out.bias"), "no tensor called proj_out.bias"),
        (lambda s: s.update({"proj_out.bias": torch.zeros(3)}), r"proj_out.bias in .* is \[3\], and its config"),
        (lambda s: s.update({"proj_out.bias": s["proj_out.bias"].to(torch.int8)}), "is I8; weights are read in"),
        (lambda s: s.update({"proj_out.bias": s["proj_out.bias"].to(torch.float8_e4m3fn)}), "is F8_E4M3"),
    ],
)
def test_tensors_that_do_not_fit(folder, tmp_path, monkeypatch, change, reason):
    file = folder / f"transformer/{NAME}.safetensors"
    state = load_file(file)
    change(state)
    file.unlink()
    save_file(state, file)
    refused(folder, tmp_path, monkeypatch, reason)


def test_face_models_that_are_others(folder, tmp_path, monkeypatch):
    """The two of ONNX in each other's places; another network's state; an archive of something else."""
    scrfd, arcface = (folder / "face_encoder" / FACE_FILES[name] for name in ("scrfd", "arcface"))
    first, second = scrfd.read_bytes(), arcface.read_bytes()
    replace(scrfd, second)
    refused(folder, tmp_path, monkeypatch, "scrfd")
    replace(scrfd, first)
    replace(arcface, first)
    refused(folder, tmp_path, monkeypatch, "glintr100.onnx is no arcface model")
    replace(arcface, second)
    eva = folder / "face_encoder" / FACE_FILES["eva"]
    for value in ([1, 2], {"visual.x": 3}, {"other": torch.zeros(1)}, {"visual.pos_embed": torch.zeros(1)}, None):
        eva.unlink()
        torch.save(value, eva)
        refused(folder, tmp_path, monkeypatch, "EVA02_CLIP")


def test_weights_of_an_onnx_in_another_file(folder, tmp_path, monkeypatch):
    import onnx

    file = folder / "face_encoder" / FACE_FILES["arcface"]
    model = onnx.load(file)
    file.unlink()
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    refused(folder, tmp_path, monkeypatch, "its weights are in other files")


INDEX = f"{NAME}.safetensors.index.json"


@pytest.mark.parametrize("place", ["../vae/x.safetensors", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "", "x\0y"])
def test_an_index_stays_in_its_folder(folder, tmp_path, monkeypatch, place):
    file = folder / f"transformer/{NAME}.safetensors"
    (folder / "transformer" / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(file), place)}))
    refused(folder, tmp_path, monkeypatch, "is not a file inside its folder")


@pytest.mark.parametrize("value", [None, [], {"a": 3}, {"a": None}, "x", {}])
def test_an_index_that_is_none(folder, tmp_path, monkeypatch, value):
    (folder / "transformer" / INDEX).write_text(json.dumps({"weight_map": value}))
    refused(folder, tmp_path, monkeypatch, "index")


def test_a_missing_shard(folder, tmp_path, monkeypatch):
    state = load_file(folder / f"transformer/{NAME}.safetensors")
    names = {name: f"{NAME}-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(state))}
    save_file(
        {n: state[n] for n, file in names.items() if "00001-of" in file}, folder / f"transformer/{names[min(names)]}"
    )
    (folder / "transformer" / INDEX).write_text(json.dumps({"weight_map": names}))
    refused(folder, tmp_path, monkeypatch, "00002-of-00002.safetensors is missing")
    save_file({"other": torch.zeros(1)}, folder / f"transformer/{NAME}-00002-of-00002.safetensors")
    refused(folder, tmp_path, monkeypatch, "lacks .*, which its index promises")


def test_names_that_are_no_checkpoint(tmp_path, capsys):
    for name in ("a" * 5000, "a\0b", "../nowhere", "", "nobody/" + "x" * 300):
        with pytest.raises(CheckpointError, match=r"(hub|checkpoint)"):
            build(name, tmp_path / "engine", backend="eager")
    with pytest.raises(InputError, match="--variant names files of a checkpoint"):
        build("tiny", tmp_path / "engine", backend="eager", variant="fp16")
    assert main(["preview", "--random-weights", "--dry-run", "--variant", "fp16", "--device", "cpu"]) == 2
    assert "leave it out" in capsys.readouterr().err


def test_every_file_of_a_checkpoint_can_be_read_by_others(tmp_path, request):
    """As the folder: safetensors makes private files."""
    request.addfinalizer(partial(os.umask, os.umask(0o022)))
    folder = write_checkpoint("tiny", tmp_path / "checkpoint")
    mask = 0o777 & folder.stat().st_mode
    assert mask == 0o755
    assert {oct(file.stat().st_mode & 0o777) for file in folder.rglob("*") if file.is_file()} == {oct(mask & 0o666)}
