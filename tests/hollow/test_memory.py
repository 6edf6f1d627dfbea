"""Running out of memory on "cuda", and pinning that is refused: the engine's words, and what becomes of the run."""

import gc
import warnings

import pytest
import torch
from hollow.calls import Flags, Kind

from consisid.engine import ConsisID, ConsisIDError
from consisid.engine.conditioning import condition_people, embed_image
from consisid.engine.run.frames import decoded

from .conftest import OPTIONS, PROMPT, WIDE, build_once

MIB = 2**20
STEPS = OPTIONS["num_inference_steps"]


@pytest.fixture
def another_takes(hollow):
    """another_takes(step, room): a callback after which another process has all of the device but so many bytes. What
    PyTorch keeps is given back first, so that the next allocation of some size asks the device, and what earlier tests
    have left free in segments that they still use is taken for the length of this one."""
    gc.collect()
    torch.cuda.empty_cache()
    free = [
        block["size"]
        for segment in torch.cuda.memory_snapshot()
        for block in segment["blocks"]
        if block["state"] == "inactive"
    ]
    remains = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sorted(free, reverse=True)]

    def after(step, room=0):
        def callback(owner, index, timestep, tensors):
            if index == step:
                torch.cuda.empty_cache()
                hollow.leave(room)
            return {}

        return callback

    yield after
    remains.clear()


@pytest.mark.parametrize("memory", [None, "4GiB"])
@pytest.mark.parametrize(("room", "stage"), [(0, "denoise, step 2|decode"), (16 * MIB, "decode")])
def test_out_of_memory_is_the_engines_error(hollow, folder, person, another_takes, memory, room, stage):
    """It names the stage, whose doing it was, and what to do; the engine goes on when there is memory again."""
    engine = ConsisID.open(folder, device="cuda", memory=memory)
    options = {**OPTIONS, "output_type": "uint8"}
    engine.generate(person, PROMPT, **options)
    with pytest.raises(ConsisIDError, match=rf"Out of device memory in the stage ({stage})") as caught:
        engine.generate(person, PROMPT, callback_on_step_end=another_takes(0, room), **options)
    assert type(caught.value).__name__ == "DeviceMemoryError"
    assert "Another process took" in str(caught.value)
    assert "on_oom=" in str(caught.value)
    hollow.take(0)
    assert len(engine.generate(person, PROMPT, **options).stats.steps) == STEPS


@pytest.mark.parametrize("memory", [None, "4GiB"])
def test_a_run_goes_on_under_a_smaller_plan(hollow, folder, person, another_takes, memory):
    engine = ConsisID.open(folder, device="cuda", memory=memory)
    options = {**OPTIONS, "output_type": "uint8", "on_oom": "replan"}
    engine.generate(person, PROMPT, **options)
    hollow.reset()
    stats = engine.generate(person, PROMPT, callback_on_step_end=another_takes(0, 16 * MIB), **options).stats
    assert stats.modes["restarts"].startswith("1 ")
    assert stats.modes["memory"] == "stages hand over"
    assert stats.calls.get("head", 0) < STEPS  # steps that were finished are not made again


def test_weights_begin_to_stream_where_memory_ran_out(hollow, wide_folder, person, another_takes):
    engine = ConsisID.open(wide_folder, device="cuda")
    options = {**OPTIONS, "on_oom": "replan"}
    engine.generate(person, PROMPT, **options)
    stats = engine.generate(person, PROMPT, callback_on_step_end=another_takes(0), **options).stats
    assert "blocks stream" in stats.modes["memory"]
    assert stats.modes["restarts"].startswith("1 ")


def test_out_of_memory_when_opening_is_named(hollow, folder):
    hollow.leave(MIB)
    with pytest.raises((ConsisIDError, torch.OutOfMemoryError)):
        ConsisID.open(folder, device="cuda")
    hollow.take(0)
    ConsisID.open(folder, device="cuda")


@pytest.mark.parametrize("memory", ["1GiB", "1.1GiB"])
def test_what_is_reserved_is_what_the_plan_says(hollow, wide_folder, person, memory):
    """Within the budget, and within a tenth and 8 MiB of the prediction: pieces of the allocator weigh much here. At
    full size: bench/reports/hollow.md."""
    torch.cuda.empty_cache()
    others = torch.cuda.memory_reserved()
    engine = ConsisID.open(wide_folder, device="cuda", memory=memory)
    hollow.reset_peaks()
    stats = engine.generate(person, PROMPT, **{**OPTIONS, "num_frames": 17, "output_type": "uint8"}).stats
    assert hollow.peak() - others == stats.peak_bytes <= stats.predicted_bytes
    for name, reserved in stats.stage_bytes.items():
        assert reserved <= stats.predicted_bytes, name


def test_the_limit_of_a_run_is_its_budget_less_what_cuda_takes(hollow, folder, person):
    """PyTorch is told of the rest only; another engine's video in between has a limit of its own."""
    outer, inner = (ConsisID.open(folder, device="cuda", memory=memory) for memory in ("4GiB", "3GiB"))
    limits = []

    def limit(engine):
        others = engine.share.others
        return round(torch.cuda.get_per_process_memory_fraction() * hollow_total() / MIB) - round(others / MIB)

    def inside(owner, step, *_):
        limits.append(("inner", limit(inner)))
        return {}

    def outside(owner, step, *_):
        limits.append(("outer", limit(outer)))
        if step == 0:
            inner.generate(person, PROMPT, callback_on_step_end=inside, **{**OPTIONS, "num_inference_steps": 1})
        return {}

    outer.generate(person, PROMPT, callback_on_step_end=outside, **OPTIONS)
    room = {"outer": 4096 - 800, "inner": 3072 - 800}
    assert limits == [(who, room[who]) for who in ("outer", "inner", "outer", "outer")]


def hollow_total():
    return torch.cuda.get_device_properties(0).total_memory


def test_random_weights_are_drawn_on_the_host(hollow, wide_folder):
    """Opened with no limit: nothing comes and goes on the device, least of all a weight in float32."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    engine = ConsisID.open(wide_folder, device="cuda")
    assert torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated() <= MIB
    del engine


def leave(result=None):
    """A large piece of memory, let go of."""
    torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    return result


def left():
    """Whether the allocator still has it."""
    return any(s["total_size"] == 64 * MIB and not s["allocated_size"] for s in torch.cuda.memory_snapshot())


def test_a_stage_begins_without_what_others_have_let_go_of(monkeypatch, folder, person):
    """At full size the image's tokens: the latents to decode would be placed in their 104 MiB, and keep them."""
    engine, found = ConsisID.open(folder, device="cuda", memory="4GiB"), []

    def look(run, latents):
        found.append(left())
        return decoded(run, latents)

    monkeypatch.setattr("consisid.engine.api.decoded", look)
    engine.generate(person, PROMPT, callback_on_step_end=lambda *_: leave({}), **{**OPTIONS, "output_type": "uint8"})
    assert found == [False]


def test_the_face_is_not_placed_in_what_the_image_has_left(monkeypatch, folder, person):
    engine, found = ConsisID.open(folder, device="cuda", memory="4GiB"), []

    def look(*given):
        conditions = condition_people(*given)
        found.append(left())
        return conditions

    monkeypatch.setattr("consisid.engine.conditioning.embed_image", lambda *given: leave(embed_image(*given)))
    monkeypatch.setattr("consisid.engine.api.condition_people", look)
    engine.generate(person, PROMPT, **OPTIONS)
    assert found == [False]


@pytest.fixture(scope="module")
def wide_checkpoint_folder(loaded, tmp_path_factory):
    """WIDE with weights in files, which a page cache keeps."""
    from consisid.engine.checkpoint import write_checkpoint

    checkpoint = tmp_path_factory.mktemp("checkpoints") / "wide"
    write_checkpoint(WIDE, checkpoint, dtype=torch.bfloat16)
    return build_once(tmp_path_factory, checkpoint, backend="eager")


def test_weights_come_from_pinned_memory(hollow, wide_checkpoint_folder, person):
    engine = ConsisID.open(wide_checkpoint_folder, device="cuda", memory="1GiB")
    with hollow.recorded() as record:
        stats = engine.generate(person, PROMPT, **OPTIONS).stats
    assert stats.modes["weights from"] == "pinned memory"
    assert len(record.of(Kind.HOST_REGISTER)) == 8
    largest = max(call.bytes for call in record.of(Kind.TO_DEVICE))
    assert {call.flags for call in record.of(Kind.TO_DEVICE) if call.bytes == largest} == {Flags(0)}
    del engine


@pytest.mark.parametrize("error", [1, 2, 801])
def test_where_pinning_is_refused_weights_come_from_the_page_cache(hollow, wide_checkpoint_folder, person, error):
    """As under WSL and with a low limit of locked memory: the run goes on, and says so."""
    engine = ConsisID.open(wide_checkpoint_folder, device="cuda", memory="1GiB")
    hollow.refuse_pinning(error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stats = engine.generate(person, PROMPT, **OPTIONS).stats
    assert stats.modes["weights from"] == "page cache"
    assert any("pin" in str(warning.message) for warning in caught)
    torch.zeros(1, device="cuda")  # nothing is left behind for the caller's next kernel


def test_a_budget_after_none_beside_what_others_hold(wide_folder, person):
    """What the engine held until then is not taken for a part of theirs."""
    engine = ConsisID.open(wide_folder, device="cuda")
    theirs = torch.empty(300 * 2**20, dtype=torch.uint8, device="cuda")
    engine.generate(person, PROMPT, **OPTIONS)
    engine.memory = 2**30
    stats = engine.generate(person, PROMPT, **OPTIONS).stats
    # The budget, not the plan: of the video before, conditions are kept in a segment that was made for more.
    assert stats.peak_bytes <= 2**30 - engine.plan(2**30).context
    del theirs
