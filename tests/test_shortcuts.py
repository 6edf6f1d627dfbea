"""What a loop may leave out: which steps are computed, what that gives, and that it waits for nothing."""

import itertools
import math

import numpy as np
import pytest
import torch
from support.engines import SHALLOW
from support.people import random_identity
from support.residency import SHAPE, SIZE, forced, put
from torch.utils._python_dispatch import TorchDispatchMode

from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.checkpoint.reading import Checkpoint
from consisid.engine.errors import InputError
from consisid.engine.graphs.graph import STAGES
from consisid.engine.graphs.trunk import in_turn, join_tokens
from consisid.engine.memory.costs import video_costs
from consisid.engine.sampling import Stepper, load_scheduler
from consisid.engine.shortcuts import Shortcuts, Step, computed_steps, plan_steps, threshold_for
from consisid.engine.variants import TINY_1_5

STEPS = 6
PROMPT = "A person walks through fresh snow."
OPTIONS = {"seed": 3, "num_inference_steps": STEPS, "output_type": "latent"}
DENOISE = STAGES.index("denoise")
THRESHOLDS = (0.05, 0.1, 0.15, 0.2)


@pytest.fixture(scope="module")
def person(shallow):
    return random_identity(shallow.variant)


@pytest.fixture(scope="module")
def make(shallow, person):
    def made(engine=shallow, **options):
        return engine.generate(person, PROMPT, **{**OPTIONS, **options})

    made.engine = shallow
    return made


@pytest.fixture(scope="module")
def exact(make):
    return make()


# --- which steps


def original(embeddings, threshold):
    """TeaCache's rule as published, one step after the other, with numpy's polynomial."""
    rescale = np.poly1d([-1.53880483e03, 8.43202495e02, -1.34363087e02, 7.97131516e00, -5.23162339e-02])
    computed, accumulated, previous = [], 0.0, None
    for count, embedding in enumerate(embeddings):
        if count in (0, len(embeddings) - 1):
            compute, accumulated = True, 0.0
        else:
            relative = (embedding - previous).abs().mean() / previous.abs().mean()
            accumulated += float(rescale(float(relative)))
            compute = not accumulated < threshold
            if compute:
                accumulated = 0.0
        computed.append(compute)
        previous = embedding
    return computed


def temb(pipeline_module, timesteps):
    """By diffusers' modules, of a pipeline's transformer."""
    with torch.no_grad():
        found = pipeline_module.time_embedding(pipeline_module.time_proj(timesteps.float()))
    return found


@pytest.fixture(scope="module")
def checkpoint_1_5(tmp_path_factory):
    return Checkpoint(write_checkpoint(TINY_1_5, tmp_path_factory.mktemp("shortcuts") / "tiny-1.5"))


def temb_1_5(checkpoint, timesteps):
    """By diffusers' layers, as its CogVideoXTransformer3DModel has them with `ofs`."""
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    def embedded(name, values, width, dim):
        layer = TimestepEmbedding(width, dim, "silu")
        layer.load_state_dict(
            {key: checkpoint.tensor("transformer", f"{name}.{key}").float() for key in layer.state_dict()}
        )
        return layer(Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)(values))

    config = TINY_1_5.transformer
    with torch.no_grad():
        time = embedded("time_embedding", timesteps.float(), config.inner_dim, config.time_embed_dim)
        ofs = embedded("ofs_embedding", torch.tensor([2.0]), config.ofs_embed_dim, config.ofs_embed_dim)
    return time + ofs


@pytest.mark.parametrize("model", ["preview", "1.5"])
@pytest.mark.parametrize("scheduler", ["CogVideoXDPMScheduler", "CogVideoXDDIMScheduler"])
def test_the_computed_steps_are_teacaches(scheduler, model, tiny, tiny_reference, checkpoint_1_5):
    """By diffusers' own time embedding of the same checkpoint, for 20 to 50 steps and four thresholds."""
    import diffusers

    from consisid.engine.conditioning import time_embeddings

    checkpoint, config = (
        (tiny.checkpoint, tiny.variant.transformer) if model == "preview" else (checkpoint_1_5, TINY_1_5.transformer)
    )
    made = getattr(diffusers, scheduler).from_config(load_scheduler(checkpoint.path / "scheduler").config)
    sets = set()
    for steps, threshold in itertools.product((20, 25, 33, 40, 50), THRESHOLDS):
        timesteps = Stepper(made, steps, 0.0, None).timesteps
        theirs = temb(tiny_reference.transformer, timesteps) if model == "preview" else temb_1_5(checkpoint, timesteps)
        ours = time_embeddings(checkpoint, config, timesteps, ())
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        expected = original(theirs, threshold)
        found = plan_steps(Shortcuts(cache=threshold), ours, guided=True)
        assert [step.trunk for step in found] == expected
        sets.add(tuple(expected))
    assert len(sets) > 3  # the rule decides something


def wave(steps):
    """Embeddings that change as fast as those of a trained model: 1 to 12 % from step to step."""
    t = torch.linspace(0, 1, steps)[:, None]
    return torch.cos(t * torch.arange(1, 17) * 0.9 + torch.arange(16)) + 2


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
@pytest.mark.parametrize("threshold", [*THRESHOLDS, 1e-9, 1e6])
def test_first_and_last_are_computed(steps, threshold):
    found = [step.trunk for step in plan_steps(Shortcuts(cache=threshold), wave(steps), True)]
    assert found == original(wave(steps), threshold)
    assert found[0]
    assert found[-1]


@pytest.mark.parametrize("steps", [2, 20, 50])
@pytest.mark.parametrize("factor", [1, 1.5, 2, 2.5, 20])
def test_a_target(steps, factor):
    steps_of = plan_steps(Shortcuts(cache=f"{factor}x"), wave(steps), True)
    count = sum(step.trunk for step in steps_of)
    assert count <= max(2, steps / factor)
    from consisid.engine.shortcuts import changes

    threshold = threshold_for(changes(wave(steps)), factor)
    if threshold > 1e-9:  # any smaller one computes more
        assert sum(computed_steps(changes(wave(steps)), threshold * (1 - 1e-6))) > max(2, int(steps / factor))


def test_a_larger_threshold_computes_no_more():
    counts = [
        sum(s.trunk for s in plan_steps(Shortcuts(cache=x), wave(50), True)) for x in (0.01, 0.05, 0.1, 0.2, 0.5, 9)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 2


def test_windows_and_reused_halves():
    found = plan_steps(Shortcuts(guidance_window=(1, 5), guidance_every=3), wave(6), True)
    assert [step.guided for step in found] == [False, True, True, True, True, False]
    assert [step.fresh for step in found] == [True, True, False, False, True, True]
    assert all(step.trunk for step in found)
    assert all(step == Step(guided=False) for step in plan_steps(Shortcuts(guidance_window=(1, 5)), wave(6), False))


def test_a_half_that_was_not_computed_is_not_added():
    """Before guidance begins nothing is known of the unconditional half, so the step at which it does is computed."""
    for window, every in itertools.product([(0, 50), (7, 31), (20, 50), (0, 20)], [1, 2, 3]):
        steps = plan_steps(Shortcuts(cache=0.3, guidance_window=window, guidance_every=every), wave(50), True)
        assert not all(step.trunk for step in steps)
        have = set()
        for i, step in enumerate(steps):
            needed = set(range(2)[step.halves])
            if step.trunk:
                have = needed
                assert step.keep == (i + 1 < 50 and not steps[i + 1].trunk)
            else:
                assert needed <= have
                assert not step.keep


# --- what comes of it


def difference(a, b):
    return float((a.latents - b.latents).abs().max())


@pytest.mark.parametrize("shortcuts", [None, Shortcuts(), {"cache": 0}, {"cache": "1x"}, {"guidance_window": (0, 99)}])
def test_nothing_left_out_gives_the_same_bytes(make, exact, shortcuts):
    assert torch.equal(make(shortcuts=shortcuts).latents, exact.latents)
    assert make(shortcuts=shortcuts).settings["approximations"] == []


@pytest.fixture
def skipping(monkeypatch):
    """skipping(1, 4): these steps are without their trunk, whatever the time embedding of random weights says."""

    def set_to(*steps):
        monkeypatch.setattr(
            "consisid.engine.shortcuts.computed_steps", lambda changes, _: [i not in steps for i in range(STEPS)]
        )

    return set_to


def test_the_error_grows_and_vanishes(make, exact, skipping):
    errors = []
    for skipped in [(), (4,), (2, 4), (1, 2, 3, 4)]:
        skipping(*skipped)
        made = make(shortcuts={"cache": 0.1})
        errors.append(difference(made, exact))
        blocks = made.stats.calls["block"] + made.stats.calls["last_block"]
        assert blocks == 4 * (STEPS - len(skipped))
        assert made.stats.calls["face"] == 2 * (STEPS - len(skipped))  # a computed step has all of them
        assert made.stats.calls["head"] == STEPS
    assert errors[0] == 0
    assert errors == sorted(errors)
    assert 0 < errors[-1] < 5


def test_a_skipped_step_adds_what_the_trunk_changed(make, skipping, monkeypatch):
    """By hand: embedding, plus what the blocks changed at the step before, through the head."""
    from consisid.engine import denoise
    from consisid.engine.prediction import Prediction

    seen = []

    class Watched(Prediction):
        def __init__(self, *given):
            super().__init__(*given)
            self.given = given

        def take(self):
            result = super().take()
            networks, latents, step, times, given, what, *_ = self.given
            tokens = [join_tokens(given.text, networks.one("embed", latents, given.image))]
            embedded = tokens[0][:, given.text.shape[1] :].clone()
            if what.trunk:
                rows = times.modulation[step]
                (video,) = in_turn([networks.trunk(tokens, rows, given.cos, given.sin, given.keys, given.values)])
                seen.append(video - embedded)
            expected = networks.one("head", embedded + seen[-1], times.out[step]) if not what.trunk else result
            torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
            return result

    monkeypatch.setattr(denoise, "Prediction", Watched)
    skipping(1, 2, 4)
    make(shortcuts={"cache": 0.1})
    assert len(seen) == 3


@pytest.mark.parametrize(
    "shortcuts",
    [
        {"cache": 0.1},
        {"cache": 0.1, "guidance_window": (1, 5)},
        {"cache": 0.1, "guidance_every": 2},
        {"guidance_every": 3},
    ],
    ids=str,
)
def test_one_half_after_the_other_is_the_same(make, skipping, shortcuts):
    skipping(2, 3)
    batched, sequential = (make(shortcuts=shortcuts, cfg=cfg) for cfg in ("batched", "sequential"))
    assert difference(batched, sequential) < 1e-4


def test_a_window_is_guidance_or_none(make, exact):
    none = make(guidance_scale=1.0)
    assert difference(make(shortcuts={"guidance_window": (0, 0)}), none) < 1e-5
    half = make(shortcuts={"guidance_window": (0, 3)})
    assert difference(half, exact) > 1e-3
    assert half.stats.modes["shortcuts"] == "guidance in 3 of 6 steps"


def test_videos_of_a_batch_are_those_alone(shallow, person, skipping):
    skipping(1, 2)
    generators = lambda: [torch.Generator().manual_seed(i) for i in (1, 2)]  # noqa: E731
    options = {**OPTIONS, "seed": None, "shortcuts": {"cache": 0.1, "guidance_window": (0, 4)}}
    both = shallow.generate(person, [PROMPT, "Rain."], generator=generators(), **options)
    for i, prompt in enumerate([PROMPT, "Rain."]):
        alone = shallow.generate(person, prompt, generator=generators()[i], **options)
        assert difference(both[i], alone) < 1e-4


def test_within_a_budget(shallow_folder, make, skipping, monkeypatch):
    """The same bytes where weights stream, and only computed steps copy them."""
    skipping(1, 2, 4)
    streamed, copied = ConsisID.open(shallow_folder), {}
    for cfg in ("batched", "sequential"):
        put(streamed, forced(streamed, 99, 2, cfg), monkeypatch)
        make(streamed, **SIZE, cfg=cfg)  # after which the prompt's embeddings are known
        for shortcuts in (None, {"cache": 0.1}):
            options = {**SIZE, "cfg": cfg, "shortcuts": shortcuts}
            found = make(streamed, **options)
            assert torch.equal(found.latents, make(**options).latents)
            copied[cfg, bool(shortcuts)] = found.stats.streamed_bytes
    for cfg, halves in (("batched", 1), ("sequential", 2)):
        blocks = sum(unit.bytes for unit in video_costs(SHALLOW, SHAPE, torch.float32).stages[DENOISE].units)
        assert copied[cfg, False] - copied[cfg, True] == pytest.approx(3 * halves * blocks, rel=0.01)


def test_a_run_that_goes_on_gives_the_same_bytes(make, skipping, tmp_path):
    """Wherever it was killed: what a later step adds is not in the file, so it goes on from a step that is computed."""
    shortcuts = {"cache": 0.1, "guidance_window": (1, 6), "guidance_every": 2}
    skipping(2, 3)
    expected = make(shortcuts=shortcuts)

    class Killed(Exception):
        pass

    for last in range(STEPS - 1):

        def kill(owner, step, timestep, tensors, last=last):
            if step == last + 1:
                raise Killed
            return {}

        options = {"checkpoint": tmp_path / "run", "checkpoint_every": 1, "shortcuts": shortcuts}
        with pytest.raises(Killed):
            make(**options, callback_on_step_end=kill)
        found = make(**options)
        assert torch.equal(found.latents, expected.latents)
        assert not (tmp_path / "run").exists()


def test_the_file_of_another_request(make, skipping, tmp_path):
    def stop(owner, step, timestep, tensors):
        if step == 2:
            raise RuntimeError("killed")
        return {}

    with pytest.raises(RuntimeError, match="killed"):
        make(checkpoint=tmp_path / "run", checkpoint_every=1, callback_on_step_end=stop)
    with pytest.raises(InputError, match="is the checkpoint of another request"):
        make(checkpoint=tmp_path / "run", shortcuts={"guidance_every": 2})


def test_a_schedule_that_a_callback_changes_is_computed(make, skipping):
    def change(owner, step, timestep, tensors):
        if step == 0:
            owner.scheduler.timesteps[3] += 1
        return {}

    skipping(1, 2, 3, 4)
    made = make(shortcuts={"cache": 0.1}, callback_on_step_end=change)
    assert made.stats.calls["block"] == 3 * STEPS


def test_a_run_whose_schedule_was_changed_goes_on_with_everything(make, skipping, tmp_path):
    class Killed(Exception):
        pass

    def change(owner, step, timestep, tensors):
        if step == 0:
            owner.scheduler.timesteps[3] += 1
        if step == 3:
            raise Killed
        return {}

    skipping(1, 2, 3, 4)
    options = {"checkpoint": tmp_path / "run", "checkpoint_every": 1, "shortcuts": {"cache": 0.1, "guidance_every": 2}}
    with pytest.raises(Killed):
        make(**options, callback_on_step_end=change)
    made = make(**options)
    assert made.stats.calls["block"] == 3 * 3  # of the last three steps
    assert made.latents.isfinite().all()


def test_numbers_of_other_libraries(make, skipping, tmp_path):
    skipping(1, 2)
    given = {"cache": np.float32(0.5), "guidance_window": [np.int64(0), 4], "guidance_every": np.int64(2)}
    made = make(shortcuts=given, output_type="uint8", num_frames=9)
    assert made.settings["shortcuts"] == {"cache": 0.5, "guidance_window": (0, 4), "guidance_every": 2}
    made.save(tmp_path / "a.mp4")
    assert Shortcuts.of({"cache": "0.5"}) == Shortcuts.of({"cache": 0.5})
    assert Shortcuts.of({"cache": "0"}) == Shortcuts.of({"cache": "1x"}) == Shortcuts()


def test_without_guidance_nothing_of_it_is_left_out(make, skipping):
    skipping()
    made = make(guidance_scale=1.0, shortcuts={"guidance_window": (0, 3), "guidance_every": 2})
    assert made.settings["approximations"] == []
    assert torch.equal(made.latents, make(guidance_scale=1.0).latents)


def test_what_is_no_number_computes():
    assert computed_steps([math.nan, 0.0, 0.0, 0.0], 0.1) == [True, True, False, False, True]


def test_it_is_named(make, skipping):
    skipping(1, 2)
    made = make(shortcuts=Shortcuts(cache=0.1, guidance_every=2))
    lines = ["step cache 0.1: 4 of 6 steps computed", "the unconditional half computed in 3 of 6 steps"]
    assert made.settings["approximations"] == lines
    assert made.settings["shortcuts"] == {"cache": 0.1, "guidance_every": 2}
    assert made.stats.modes["shortcuts"] == "; ".join(lines)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.1, "are no Shortcuts"), ({"cash": 1}, "have no 'cash'"), ({"cache": "fast"}, "neither a threshold"),
        ({"cache": -0.1}, "neither a threshold"), ({"cache": math.nan}, "neither"), ({"cache": True}, "neither"),
        ({"cache": "0.5x"}, "neither"), ({"cache": "99x"}, "neither"), ({"cache": [1]}, "neither"),
        ({"guidance_window": 3}, "no \\(first, end\\)"), ({"guidance_window": (3, 1)}, "no \\(first, end\\)"),
        ({"guidance_window": (-1, 1)}, "no \\(first, end\\)"), ({"guidance_window": (1, 2, 3)}, "no \\(first"),
        ({"guidance_window": ("a", 1)}, "guidance_window"), ({"guidance_every": 0}, "at least 1"),
        ({"guidance_every": 1.5}, "guidance_every"),
    ],
)  # fmt: skip
def test_what_is_no_shortcut(make, value, said):
    with pytest.raises(InputError, match=said):
        make(shortcuts=value)


# --- no waiting


class NeverWaits(TorchDispatchMode):
    """Fails on every operation for which the host would wait for a GPU."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique2", "bincount")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITS or (name in ("index", "index_put", "index_put_") and has_mask(args[1])):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def has_mask(indices):
    return any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in indices if x is not None)


def forbid_waiting(monkeypatch):
    """Predictions, and what is between them, fail where they would wait; gives a list with an entry for each step."""
    from consisid.engine import denoise

    predict, watched = denoise._of_people, []

    def strictly(*given):
        work = predict(*given)
        watched.append(1)
        while True:
            try:
                with NeverWaits():
                    made = next(work)
            except StopIteration as end:
                return end.value
            yield made

    def advance(prediction, own=denoise.Prediction.advance):
        with NeverWaits():
            return own(prediction)

    monkeypatch.setattr(denoise.Prediction, "advance", advance)
    monkeypatch.setattr(denoise, "_of_people", strictly)
    return watched


@pytest.mark.parametrize(
    "shortcuts", [None, {"cache": 0.1}, {"cache": 0.1, "guidance_window": (1, 5), "guidance_every": 2}], ids=str
)
@pytest.mark.parametrize("cfg", ["batched", "sequential"])
def test_the_loop_waits_for_nothing(make, skipping, cfg, shortcuts, monkeypatch):
    """The networks and the guidance of every step; schedulers are diffusers' and read their own tables on the host."""
    watched = forbid_waiting(monkeypatch)
    skipping(2, 4)
    make(shortcuts=shortcuts, cfg=cfg)
    assert len(watched) == STEPS
    with pytest.raises(AssertionError, match="waits for the device"), NeverWaits():
        torch.ones(1).item()
