"""The first-block cache: which steps run all blocks, what the others add, and that nothing of it is guessed."""

import math

import pytest
import torch
from support.people import random_identity
from test_shortcuts import NeverWaits, difference, forbid_waiting

from consisid.engine import denoise
from consisid.engine.errors import InputError
from consisid.engine.first_block import FirstBlock
from consisid.engine.graphs.trunk import in_turn, join_tokens
from consisid.engine.prediction import Prediction
from consisid.engine.shortcuts import Step

pytestmark = pytest.mark.slow

STEPS = 7
OPTIONS = {"seed": 3, "num_inference_steps": STEPS, "output_type": "latent"}
PROMPT = "A person walks through fresh snow."


@pytest.fixture(scope="module")
def make(shallow):
    person = random_identity(shallow.variant)

    def made(first_block=None, **options):
        shortcuts = {"first_block": first_block, **options.pop("shortcuts", {})}
        return shallow.generate(person, PROMPT, **{**OPTIONS, "shortcuts": shortcuts, **options})

    return made


@pytest.fixture(scope="module")
def exact(make):
    return make()


def decided(changes, threshold, planned=None):
    """The steps that a loop decides for, when its first block moves by these from each step to the next."""
    decides, residual = FirstBlock(threshold, planned or [Step(looks=True)] * (len(changes) + 1)), torch.ones(1, 2, 3)
    decides.prepare([torch.empty(1, 2, 3)])
    for index, change in enumerate([0.0, *changes]):
        decides.step(index)
        residual = residual * (1 + change)
        decides.look(0, residual)
        decides.tell()
    return [step.trunk for step in decides.steps]


def test_the_rule():
    """Computed while the changes since the last computed step, and one more like the last, come to the threshold."""
    assert decided([0.01] * 9, 0.035) == [True, True, False, False, False, True, False, False, False, True]
    assert decided([0.01] * 9, 1e-9) == [True] * 10
    assert decided([0.01] * 9, 1e6) == [True, True, *[False] * 7, True]
    # A change that grows is seen a step late.
    assert decided([0.01, 0.01, 0.5, 0.01, 0.01, 0.01], 0.1) == [True, True, False, False, True, False, True]
    assert decided([math.nan] * 4, 0.1) == [True] * 5
    assert decided([], 0.1) == [True]


def test_a_half_that_is_not_there_is_computed():
    """Guidance comes back after steps without it: the unconditional half of what is added would be of long ago."""
    planned = [Step(guided=index not in (2, 3), looks=True) for index in range(6)]
    assert decided([0.0] * 5, 0.1, planned) == [True, True, False, False, False, True]
    planned = [Step(guided=index > 2, looks=True) for index in range(6)]
    assert decided([0.0] * 5, 0.1, planned) == [True, True, False, True, False, True]


def test_threshold_0_is_the_exact_run(make, exact):
    assert torch.equal(make(0).latents, exact.latents)
    assert exact.settings["approximations"] == []


def test_all_computed_is_nearly_the_exact_run(make, exact):
    """The blocks see the same numbers; what is kept is only looked at."""
    found = make(1e-9)
    assert torch.equal(found.latents, exact.latents)
    assert found.settings["approximations"] == [f"first-block cache 1e-09: {STEPS} of {STEPS} steps computed"]


def test_the_error_grows_with_the_threshold(make, exact):
    errors, counts = [], []
    for threshold in (1e-9, 0.02, 0.1, 10.0):
        made = make(threshold)
        errors.append(difference(made, exact))
        counts.append(made.stats.calls["last_block"])
        assert made.stats.calls["head"] == STEPS
        assert made.settings["shortcuts"] == {"first_block": threshold}
        assert made.stats.modes["shortcuts"].endswith(f"{counts[-1]} of {STEPS} steps computed")
    assert errors[0] == 0
    assert errors == sorted(errors)
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (STEPS, 3)


def test_a_skipped_step_by_hand(make, monkeypatch):
    """The first block as it is, and what the others changed at the last step that ran them, through the head."""
    rest, skipped = [], []

    class Watched(Prediction):
        def __init__(self, *given):
            super().__init__(*given)
            self.given = given

        def take(self):
            result = super().take()
            networks, latents, step, times, given, what, *_ = self.given
            text, rows = given.text.shape[1], times.modulation[step]
            hidden = join_tokens(given.text, networks.one("embed", latents, given.image))
            first = networks.one("block", hidden, rows[0], given.cos, given.sin)[:, text:].clone()
            if what.trunk:
                (video,) = in_turn([networks.trunk([hidden], rows, given.cos, given.sin, given.keys, given.values)])
                rest.append(video - first)
            else:
                skipped.append(step)
                expected = networks.one("head", first + rest[-1], times.out[step])
                torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
            return result

    monkeypatch.setattr(denoise, "Prediction", Watched)
    make(10.0)
    assert skipped == list(range(2, STEPS - 1))


@pytest.mark.parametrize("shortcuts", [{}, {"guidance_window": (0, 5)}, {"guidance_every": 2}], ids=str)
def test_one_half_after_the_other_is_the_same(make, shortcuts):
    one, other = (make(0.1, shortcuts=shortcuts, cfg=cfg) for cfg in ("batched", "sequential"))
    assert one.stats.calls["head"] == other.stats.calls["head"] / 2 or shortcuts
    assert difference(one, other) < 1e-4


def test_several_at_once_decide_for_themselves(shallow, make):
    person = random_identity(shallow.variant)
    requests = [
        {"identity": person, "prompt": PROMPT, **OPTIONS, "seed": seed, "shortcuts": {"first_block": threshold}}
        for seed, threshold in ((1, 0.02), (2, 10.0), (3, None))
    ]
    expected = {each["seed"]: shallow.generate(**each).latents for each in requests}
    for job in shallow.generate_many(requests, together=3):
        assert torch.equal(job.result().latents, expected[job.request.options.seed])


def test_the_loop_waits_for_nothing(make, monkeypatch):
    """No operation does; what the step before has told the host is read from memory of its own."""

    def strict(own):
        def called(*given):
            with NeverWaits():
                return own(*given)

        return called

    forbid_waiting(monkeypatch)
    monkeypatch.setattr(FirstBlock, "step", strict(FirstBlock.step))
    monkeypatch.setattr(FirstBlock, "tell", strict(FirstBlock.tell))
    assert 3 <= make(0.1).stats.calls["last_block"] <= STEPS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"first_block": "2x"}, "no threshold"), ({"first_block": -1}, "first_block=-1"),
        ({"first_block": math.nan}, "=nan"),
        ({"first_block": True}, "no threshold"), ({"first_block": 0.1, "cache": 0.1}, "one of the two"),
    ],
)  # fmt: skip
def test_what_is_no_threshold(make, options, said):
    with pytest.raises(InputError, match=said):
        make(shortcuts=options, first_block=options["first_block"])


def test_it_cannot_go_on_from_a_file(make, tmp_path):
    with pytest.raises(InputError, match="leave out the checkpoint"):
        make(0.1, checkpoint=tmp_path / "steps")
