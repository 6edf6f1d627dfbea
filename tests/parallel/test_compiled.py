"""Compiled graphs for a share of the tokens, and what is said where there are none."""

import pytest
import torch
from support.engines import build_in_part, build_stand_in, kept
from support.people import random_identity

from consisid.engine import ConsisID
from consisid.engine.errors import EngineError, InputError
from consisid.engine.manifest import Manifest
from consisid.export import build


@pytest.mark.full
def test_compiled_blocks_are_cut_at_their_attention(shallow, shallow_checkpoint, tmp_path):
    folder = tmp_path / "spread"
    kept(
        folder,
        lambda place: build_in_part(
            shallow_checkpoint, place, lambda name: name.startswith("spread"), sequence=2, bundle=True
        ),
    )
    entries = Manifest.read(folder).graphs
    compiled = {name for name, entry in entries.items() if entry.backend == "inductor"}
    assert compiled == {"spread_in", "spread_out", "spread_face", "spread_last_face"} & set(entries)
    assert {"spread_in", "spread_out"} <= compiled
    options = {"num_inference_steps": 2, "seed": 3, "output_type": "latent"}
    person = random_identity(shallow.variant)
    engine = ConsisID.open(folder, devices=2, mesh="ring=2", timeout=120)
    try:
        found = engine.generate(person, "A person.", **options).latents
        assert engine.team.exchange.sent["ring"] > 0
    finally:
        engine.close()
    expected = shallow.generate(person, "A person.", **options).latents
    assert (found - expected).abs().max() <= 1e-4
    # What is not compiled for one device makes a video there all the same: the graphs for a share stay out of it.
    alone = ConsisID.open(folder).generate(person, "A person.", **options).latents
    assert torch.equal(alone, expected)


def test_a_mesh_that_nothing_was_compiled_for(shallow_checkpoint, tmp_path):
    folder = tmp_path / "engine"
    build_stand_in(shallow_checkpoint, folder, sequence=3)
    with pytest.raises(EngineError, match=r"compiled for tokens on 3 devices, .* over 2; build it with --sequence 2"):
        ConsisID.open(folder, devices=2, mesh="ring=2")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"sequence": 0}, InputError, "sequence=0 is not from 1 to 64"),
        ({"sequence": 2.0}, InputError, "is not a whole number"),
    ],
)
def test_what_is_not_built(tmp_path, options, error, sentence):
    with pytest.raises(error, match=sentence):
        build("tiny", tmp_path / "engine", **options)
    assert not (tmp_path / "engine").exists()


def test_a_folder_for_one_device_is_what_it_was(tmp_path):
    """Folders that were built before there was `sequence` keep their key."""
    import hashlib
    import json
    from dataclasses import asdict

    build("tiny", tmp_path / "engine", backend="eager")
    spec = Manifest.read(tmp_path / "engine").spec
    values = {name: value for name, value in asdict(spec).items() if name != "sequence"}
    assert spec.key == hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
