"""Identities and the files of runs carry a hash of what is in them: what was changed is refused."""

import json
import struct
import warnings

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from safetensors.torch import load_file, save_file
from support.people import random_identity

from consisid.engine import ConsisID, Identity
from consisid.engine.errors import ConsisIDError, InputError
from consisid.engine.face.identity import KIND
from consisid.engine.util.parsing import Unreadable
from consisid.engine.util.sealed import load_sealed, save_sealed
from consisid.engine.variants import TINY


def header_of(file):
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(file, change):
    """The file with its JSON header changed, and nothing else."""
    header, rest = header_of(file)
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + rest)


@pytest.fixture
def identity(tmp_path):
    return random_identity(TINY).save(tmp_path / "me.safetensors")


def test_a_sealed_file_holds_what_was_written(tmp_path):
    tensors = {"a": torch.arange(6).view(2, 3).T, "b": torch.zeros(0), "c": torch.tensor(1.5, dtype=torch.bfloat16)}
    save_sealed(tmp_path / "x.safetensors", tensors, {"ü": [1, None]})
    found, values = load_sealed(tmp_path / "x.safetensors")
    assert values == {"ü": [1, None]}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_tensors_of_one_memory(tmp_path):
    one = torch.arange(4)
    save_sealed(tmp_path / "x.safetensors", {"a": one, "b": one, "c": one[1:]}, {})
    assert load_sealed(tmp_path / "x.safetensors")[0]["c"].tolist() == [1, 2, 3]


def test_any_flipped_bit_is_found(tmp_path):
    """Of a small file every bit in turn: header, names, shapes, data."""
    file = tmp_path / "x.safetensors"
    save_sealed(file, {"a": torch.arange(3, dtype=torch.int16)}, {"n": 1})
    whole = file.read_bytes()
    for bit in range(len(whole) * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            found, values = load_sealed(file)
        except Unreadable:
            continue
        # What is left: the name of an entry of the header that nothing reads, or white space.
        assert values == {"n": 1}
        assert found["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("where", [0.3, 0.6, 0.95])
def test_an_identity_with_a_flipped_bit(identity, where):
    data = bytearray(identity.read_bytes())
    data[int(len(data) * where)] ^= 1
    identity.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot be read as an identity \(.*\); save it again"):
        Identity.load(identity)


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


CHANGES = {
    "a hidden state is missing": lambda t: without(t, "hidden_2"),
    "the last hidden state is missing": lambda t: without(t, "hidden_4"),
    "no image": lambda t: without(t, "image"),
    "an image of no pixels": lambda t: t | {"image": torch.zeros(0, 0, 3, dtype=torch.uint8)},
    "an image of no width": lambda t: t | {"image": torch.zeros(8, 0, 3, dtype=torch.uint8)},
    "a grey image": lambda t: t | {"image": torch.zeros(8, 8, dtype=torch.uint8)},
    "an image of numbers": lambda t: t | {"image": torch.zeros(8, 8, 3)},
    "a wide image": lambda t: t | {"image": torch.zeros(1, 20_000, 3, dtype=torch.uint8)},
    "NaN": lambda t: t | {"id_cond": t["id_cond"] * float("nan")},
    "whole numbers": lambda t: t | {"id_cond": t["id_cond"].to(torch.int32)},
    "one more": lambda t: t | {"hidden_5": t["hidden_0"].clone()},
    "another tensor": lambda t: t | {"x": torch.zeros(1)},
    "two people": lambda t: t | {"id_cond": torch.zeros(2, 1280)},
    "key points of another shape": lambda t: t | {"key_points": torch.zeros(4, 2)},
}


@pytest.mark.parametrize("sealed", [True, False], ids=["with a hash of its own", "with the old hash"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_identity_that_was_changed(identity, change, sealed):
    header = header_of(identity)[0]["__metadata__"]
    tensors = change(load_file(identity))
    if sealed:
        save_sealed(identity, tensors, json.loads(header["consisid"]))
    else:
        save_file(tensors, identity, header)
    with pytest.raises(InputError) as caught:
        Identity.load(identity)
    assert len(str(caught.value).replace(str(identity), "")) <= 400


@pytest.mark.parametrize(
    "values",
    [{}, {"kind": KIND}, {"kind": KIND, "hidden": 5, "source": []}, {"kind": KIND, "hidden": 10**9, "source": {}},
     {"kind": KIND, "hidden": True, "source": {}}, {"kind": KIND, "hidden": 5, "source": {"a": 1}}, {"kind": 3}],
)  # fmt: skip
def test_an_identity_with_another_header(identity, values):
    save_sealed(identity, load_file(identity), values)
    with pytest.raises(InputError, match="cannot be read as an identity"):
        Identity.load(identity)


OPTIONS = {"seed": 1, "num_inference_steps": 4, "output_type": "latent"}


class Stopped(Exception):
    """What ends a run in the middle."""


@pytest.fixture
def begun(tiny_folder, tmp_path):
    """An engine, and the file of a run of which two steps of four are finished."""

    def stop(engine, step, timestep, tensors):
        if step == 2:
            raise Stopped
        return tensors

    engine, file = ConsisID.open(tiny_folder), tmp_path / "run.safetensors"
    with pytest.raises(Stopped):
        engine.generate(
            random_identity(TINY), "A man.", checkpoint=file, checkpoint_every=1, callback_on_step_end=stop, **OPTIONS
        )
    return engine, file


def go_on(engine, file):
    return engine.generate(random_identity(TINY), "A man.", checkpoint=file, checkpoint_every=1, **OPTIONS).latents


def test_a_run_goes_on(begun, tiny):
    engine, file = begun
    assert torch.equal(go_on(engine, file), tiny.generate(random_identity(TINY), "A man.", **OPTIONS).latents)


@pytest.mark.parametrize("steps", [99, 4, 3, 0, -1, "2", None, 2.5, 10**30])
@pytest.mark.parametrize("sealed", [True, False], ids=["with a hash of its own", "with the old hash"])
def test_a_run_whose_steps_were_edited(begun, steps, sealed):
    """With the hash computed anew, too, unless the number could be true: all four steps, or three."""
    engine, file = begun
    values = json.loads(header_of(file)[0]["__metadata__"]["consisid"])
    values["steps"] = steps
    if sealed:
        if steps in (3, 4):
            pytest.skip("whoever computes the hash anew can write any run")
        save_sealed(file, load_file(file), values)
    else:
        with_header(file, lambda header: header["__metadata__"].update(consisid=json.dumps(values)))
    with pytest.raises(InputError, match=r"is not a checkpoint of a run \(.*\); delete it"):
        go_on(engine, file)


def test_a_run_goes_on_under_its_own_scheduler_only(begun, tiny):
    """Begun under DPM, not finished under DDIM, nor under the same with other settings."""
    engine, file = begun
    first = engine.scheduler
    for other in (
        CogVideoXDDIMScheduler.from_config(first.config),
        type(first).from_config(first.config, snr_shift_scale=3.0),
    ):
        engine.scheduler = other
        with pytest.raises(InputError, match="is the checkpoint of another request"):
            go_on(engine, file)
    engine.scheduler = type(first).from_config(first.config)
    assert torch.equal(go_on(engine, file), tiny.generate(random_identity(TINY), "A man.", **OPTIONS).latents)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 1), (("format",), "2"), (("cfg",), 3), (("cfg",), "both"), (("request",), "x"),
        (("latents",), None),
        (("latents",), {"tensor": "99", "device": "cpu"}), (("latents",), {"list": []}), (("stepper",), {"dict": {}}),
        (("stepper", "dict", "scheduler"), 3), (("start",), {"list": 3}), (("now",), {"dict": {}}),
        (("latents", "device"), "nowhere"), (("prompt_embeds",), 7),
    ],
)  # fmt: skip
def test_a_run_with_another_header(begun, path, value):
    engine, file = begun
    values = json.loads(header_of(file)[0]["__metadata__"]["consisid"])
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    save_sealed(file, load_file(file), values)
    with warnings.catch_warnings(), pytest.raises(ConsisIDError) as caught:
        go_on(engine, file)
    assert len(str(caught.value).replace(str(file), "")) <= 400
