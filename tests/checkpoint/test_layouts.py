"""Checkpoints as they come: what other tools write and unpack, and which of several files is read."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage.data import astronaut
from support.files import edit, replace
from support.people import random_identity
from support.reference import reference_pipeline

from consisid.engine import ConsisID
from consisid.engine.checkpoint.reading import Checkpoint
from consisid.engine.checkpoint.weight_files import WeightFiles, choose_weights
from consisid.engine.errors import CheckpointError
from consisid.engine.manifest import Manifest
from consisid.engine.util.parsing import Unreadable
from consisid.engine.variants import TINY
from consisid.export import build
from consisid.export.cli import main

pytestmark = pytest.mark.slow

SHORT = {"seed": 1, "num_inference_steps": 1, "output_type": "latent"}
NAME = "diffusion_pytorch_model"
NESTED = "face_encoder/models/antelopev2/antelopev2"


def latents(folder: Path, **options) -> torch.Tensor:
    return ConsisID.open(folder, **options).generate(random_identity(TINY), "A man in a dark coat.", **SHORT).latents


def doubled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Other weights of the same shapes."""
    return {name: value * 2 for name, value in state.items()}


def shards(folder: Path, state: dict[str, torch.Tensor], infix: str = "") -> None:
    """The weights of transformer/ in two files and an index, as save_pretrained writes them."""
    names = sorted(state)
    files = {f"{NAME}{infix}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in files.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / f"{NAME}.safetensors.index{infix}.json").write_text(json.dumps(index))


def test_what_save_pretrained_writes_today_makes_the_same_video(tiny_checkpoint, tiny_folder, tmp_path):
    """transformers 5 writes tokenizer.json and no spiece.model; face_encoder is copied beside it."""
    reference_pipeline(tiny_checkpoint).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/tokenizer/spiece.model").exists()
    with pytest.raises(CheckpointError, match=r"face_encoder.* is missing.*save_pretrained leaves it out"):
        build(tmp_path / "saved", tmp_path / "engine", backend="eager")
    assert not (tmp_path / "engine").exists()
    shutil.copytree(tiny_checkpoint / "face_encoder", tmp_path / "saved/face_encoder")
    manifest = build(tmp_path / "saved", tmp_path / "engine", backend="eager")
    assert "tokenizer/tokenizer.json" in manifest.weights
    assert torch.equal(latents(tmp_path / "engine"), latents(tiny_folder))


@pytest.mark.parametrize(
    ("part", "names", "variant", "expected"),
    [
        ("vae", [f"{NAME}.safetensors", f"{NAME}.fp16.safetensors"], None, WeightFiles(f"{NAME}.safetensors")),
        ("vae", [f"{NAME}.safetensors", f"{NAME}.fp16.safetensors"], "fp16", WeightFiles(f"{NAME}.fp16.safetensors")),
        ("vae", [f"{NAME}.safetensors"], "fp16", WeightFiles(f"{NAME}.safetensors")),
        ("vae", [f"{NAME}.safetensors", f"._{NAME}.safetensors"], None, WeightFiles(f"{NAME}.safetensors")),
        ("vae", ["other.safetensors"], None, WeightFiles("other.safetensors")),
        ("vae", [f"{NAME}.safetensors", f"{NAME}.safetensors.index.json"], None,
         WeightFiles(index=f"{NAME}.safetensors.index.json")),
        ("text_encoder", ["model.safetensors", "model.safetensors.index.json"], None, WeightFiles("model.safetensors")),
        ("vae", [f"{NAME}.safetensors.index.json", f"{NAME}.safetensors.index.fp16.json"], None,
         WeightFiles(index=f"{NAME}.safetensors.index.json")),
        ("vae", [f"{NAME}.safetensors.index.json", f"{NAME}.safetensors.index.fp16.json"], "fp16",
         WeightFiles(index=f"{NAME}.safetensors.index.fp16.json")),
        ("vae", [f"{NAME}.safetensors.index.fp16.json", f"{NAME}.fp16-00001-of-00001.safetensors"], None,
         WeightFiles(index=f"{NAME}.safetensors.index.fp16.json")),
        ("vae", ["a.safetensors", "b.safetensors"], None, None),
        ("vae", ["pytorch_model.bin"], None, None),
        ("vae", [], None, None),
    ],
)  # fmt: skip
def test_the_files_are_those_that_diffusers_takes(part, names, variant, expected):
    if expected is None:
        with pytest.raises(Unreadable, match=r"one file is needed, or shards"):
            choose_weights(part, names, variant)
    else:
        assert choose_weights(part, names, variant) == expected


def test_a_variant_of_the_files(folder, tiny_folder, tmp_path):
    """transformer/ has both, in two kinds of files; text encoder and VAE have the ordinary ones only, as diffusers lets
    them; macOS left its shadows."""
    state = load_file(folder / f"transformer/{NAME}.safetensors")
    shards(folder / "transformer", doubled(state), ".fp16")
    for file in [*folder.rglob("*.safetensors"), *folder.rglob("*.json"), *folder.rglob("*.onnx")]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\26\7" + bytes(100))
    plain = build(folder, tmp_path / "plain", backend="eager")
    assert torch.equal(latents(tmp_path / "plain"), latents(tiny_folder))
    arguments = [str(folder), "--output", str(tmp_path / "fp16"), "--backend", "eager", "--device", "cpu"]
    assert main([*arguments, "--variant", "fp16", "--bundle"]) == 0
    other = Manifest.read(tmp_path / "fp16")
    assert {name for name in other.weights if name.startswith("transformer/")} == {
        "transformer/config.json", f"transformer/{NAME}.safetensors.index.fp16.json",
        f"transformer/{NAME}.fp16-00001-of-00002.safetensors", f"transformer/{NAME}.fp16-00002-of-00002.safetensors",
    }  # fmt: skip
    copied = {str(f.relative_to(tmp_path / "fp16/checkpoint")) for f in tmp_path.glob("fp16/checkpoint/**/*.*")}
    assert {name for name in copied if (tmp_path / "fp16/checkpoint" / name).is_file()} == {
        *other.weights, "model_index.json"
    }  # fmt: skip
    assert not any("fp16" in name or "/._" in name for name in plain.weights)

    first, second = latents(tmp_path / "plain"), latents(tmp_path / "fp16")
    assert not torch.equal(first, second)
    save_file(doubled(state), tmp_path / "doubled.safetensors")
    replace(folder / f"transformer/{NAME}.safetensors", (tmp_path / "doubled.safetensors").read_bytes())
    build(folder, tmp_path / "doubled", backend="eager")
    assert torch.equal(second, latents(tmp_path / "doubled"))
    with pytest.raises(CheckpointError, match="no files of the variant 'ema'"):
        build(folder, tmp_path / "ema", backend="eager", variant="ema")
    with pytest.raises(CheckpointError, match="no files of the variant"):
        Checkpoint(folder, "../fp16")


def test_shards_make_the_same_video_as_one_file(folder, tiny_folder, tmp_path):
    file = folder / f"transformer/{NAME}.safetensors"
    shards(folder / "transformer", load_file(file))
    file.unlink()
    build(folder, tmp_path / "engine", backend="eager")
    assert torch.equal(latents(tmp_path / "engine"), latents(tiny_folder))


def test_antelopev2_in_antelopev2_is_read(folder, tmp_path):
    """What unpacking antelopev2.zip in the folder antelopev2 leaves."""
    (folder / NESTED).mkdir()
    for file in (folder / NESTED).parent.glob("*.onnx"):
        file.rename(folder / NESTED / file.name)
    manifest = build(folder, tmp_path / "engine", backend="eager", bundle=True)
    assert f"{NESTED}/glintr100.onnx" in manifest.weights
    engine = ConsisID.open(tmp_path / "engine")
    assert engine.identify(astronaut()).id_cond.isfinite().all()


def test_files_of_old_pytorch_are_read(folder, tiny_folder, tmp_path):
    """facexlib's are from before PyTorch 1.6, whose files are archives that can be mapped."""
    for name in ("detection_Resnet50_Final.pth", "parsing_bisenet.pth"):
        file = folder / "face_encoder" / name
        state = torch.load(file, weights_only=True)
        file.unlink()
        torch.save(state, file, _use_new_zipfile_serialization=False)
    build(folder, tmp_path / "engine", backend="eager")
    found, expected = (ConsisID.open(f).identify(astronaut()) for f in (tmp_path / "engine", tiny_folder))
    assert torch.equal(found.id_cond, expected.id_cond)


@pytest.mark.parametrize("bundle", [True, False])
def test_an_engine_opened_by_a_relative_path_survives_chdir(tiny_checkpoint, tmp_path, monkeypatch, bundle):
    monkeypatch.chdir(tmp_path)
    os.symlink(tiny_checkpoint, "checkpoint")
    build("checkpoint", "engine", backend="eager", bundle=bundle)
    engine = ConsisID.open("engine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    person = engine.identify(astronaut())
    assert engine.generate(person, "A man.", **SHORT).latents.isfinite().all()


def test_layers_that_the_configuration_leaves_out_are_said(folder, tmp_path):
    edit(folder / "transformer/config.json", lambda values: values.update(num_layers=3, cross_attn_interval=3))
    with pytest.warns(UserWarning, match=r"has \d+ tensors that its config.json leaves out, among them perceiver"):
        build(folder, tmp_path / "engine", backend="eager")
