"""Recordings of the loop's calls, with a recorder that repeats a Python function on the same memory: no GPU needed."""

from collections import Counter

import pytest
import torch
from support.residency import OPTIONS, PERSON, PROMPT, LateCopies, forced, latents, put

from consisid.engine import ConsisID
from consisid.engine.errors import InputError
from consisid.engine.runtime.cuda_graphs import Buffers, Captured, Captures


class Repeater:
    """As a CUDA graph does, it takes no effect while it records, and later knows nothing but the memory it saw."""

    made = 0

    def capture(self, function):
        Repeater.made += 1
        return function


def scaled(inputs, weights):
    """A graph with two outputs."""
    return inputs[0] * weights[0], inputs[0] + inputs[1]


@pytest.fixture
def captured() -> Captured:
    Repeater.made = 0
    return Captured(scaled, Repeater(), Buffers(), keep=False)


def test_first_call_then_recorded_then_replayed(captured):
    weight = (torch.full((2,), 3.0),)
    for turn, expected in enumerate((0, 1, 1, 1)):
        x, y = torch.full((2,), float(turn)), torch.full((4,), 1.0)[::2]
        first, second = captured((x, y), weight)
        assert Repeater.made == expected
        assert torch.equal(first, 3.0 * x)
        assert torch.equal(second, x + 1.0)


def test_a_recording_belongs_to_shapes_and_addresses(captured):
    weights = [(torch.full((1,), float(i)),) for i in (2, 3)]
    for size in (2, 5):
        for _ in range(3):
            for weight in weights:
                x = torch.randn(size)
                assert torch.equal(captured((x, x), weight)[0], x * weight[0])
    assert Repeater.made == 4
    weights[0][0].fill_(7.0)  # other values at the same address, as in a ring
    assert torch.equal(captured((x, x), weights[0])[0], x * 7.0)
    assert Repeater.made == 4


@pytest.mark.parametrize("keep", [False, True])
def test_how_long_outputs_live(captured, keep):
    """Until the next call, unless they are kept; an output may be the next input."""
    captured.keep = keep
    weight, x = (torch.full((2,), 3.0),), torch.ones(2)
    for _ in range(2):
        first, _ = captured((x, x), weight)
    again, _ = captured((first, x), weight)
    assert torch.equal(again, torch.full((2,), 9.0))
    assert torch.equal(first, torch.full((2,), 3.0 if keep else 9.0))


def recorded(engine: ConsisID) -> ConsisID:
    """The engine, with the stand-in where CUDA graphs would be."""
    engine.weights.captures = Captures(Repeater)
    engine._networks.clear()
    Repeater.made = 0
    return engine


@pytest.mark.parametrize("cfg", ["batched", "sequential"])
def test_same_bytes_when_recorded(engine, expected, cfg):
    """Each graph of the loop once per layer; forgotten after the video, as weights may move."""
    recorded(engine)
    for _ in range(2):
        Repeater.made = 0
        video = engine.generate(PERSON, PROMPT, **OPTIONS, cfg=cfg)
        assert torch.equal(video.latents, expected[cfg])
        calls = Counter(video.stats.calls)
        steps = 3 * (1 if cfg == "batched" else 2)
        loop = sum(calls[name] for name in ("embed", "block", "last_block", "face", "last_face", "head"))
        assert Repeater.made == loop // steps
        assert video.stats.modes["graphs"] == "block"
        assert engine.weights.captures._kept == {}


def test_same_bytes_when_recorded_and_streamed(engine, expected, monkeypatch):
    """A recording per buffer of the ring, whichever block is in it."""
    put(recorded(engine), forced(engine, 4, 2), monkeypatch, LateCopies())
    assert torch.equal(latents(engine, num_inference_steps=3), expected["batched"])
    # `block` in either buffer, `last_block` always in the second; two faces, `embed` and `head` are resident.
    assert Repeater.made == 2 + 1 + 2 + 2


@pytest.mark.parametrize("cfg", ["batched", "sequential"])
def test_same_bytes_when_steps_are_left_out(engine, monkeypatch, cfg):
    """Outputs share memory, and what the trunk changed is told from two of them."""
    steps = [True, True, False, True, False, True]
    monkeypatch.setattr("consisid.engine.shortcuts.computed_steps", lambda changes, threshold: steps)
    options = {**OPTIONS, "num_inference_steps": len(steps), "cfg": cfg, "shortcuts": {"cache": 0.1}}
    without = engine.generate(PERSON, PROMPT, **options).latents
    assert torch.equal(recorded(engine).generate(PERSON, PROMPT, **options).latents, without)


def test_off_unless_asked_for(engine, shallow_folder):
    assert engine.weights.captures is None
    with pytest.raises(InputError, match="needs a CUDA GPU"):
        ConsisID.open(shallow_folder, device="cpu", cuda_graphs=True)
