"""Many videos at once, as the device sees them: within their plan, waiting for nothing in the loop."""

import pytest
import torch
from hollow.calls import Kind

from consisid.engine import ConsisID

from .conftest import OPTIONS, PROMPT

STEPS = [3, 2, 4]


def requests(person, **others):
    return [
        {"identity": person, "prompt": f"{PROMPT} {i}", **OPTIONS, "num_inference_steps": steps, "seed": i, **others}
        for i, steps in enumerate(STEPS)
    ]


@pytest.mark.parametrize("together", [None, 2, 3])
@pytest.mark.parametrize("memory", ["1GiB", "4GiB"])
def test_they_keep_to_their_plan(hollow, wide_folder, person, memory, together):
    engine = ConsisID.open(wide_folder, device="cuda", memory=memory)
    for _ in range(2):
        for job in engine.generate_many(requests(person), together=together):
            stats = job.result().stats
            assert stats.predicted_bytes is not None
            assert stats.peak_bytes <= stats.predicted_bytes
            assert max(stats.stage_bytes.values(), default=0) <= stats.predicted_bytes


def test_the_plan_is_near_what_several_take(hollow, wide_folder, person):
    engine = ConsisID.open(wide_folder, device="cuda", memory="4GiB")
    jobs = list(engine.generate_many(requests(person), together=3))
    seen = max(job.result().stats.peak_bytes for job in jobs)
    predicted = jobs[0].result().stats.predicted_bytes
    assert seen >= 0.75 * predicted  # at full size 0.95 and more: bench/reports/hollow.md


@pytest.mark.parametrize("memory", [None, "4GiB"])
def test_the_host_waits_for_nothing_in_the_loop(hollow, folder, person, loaded, memory):
    """From the first step of the longest to its last, while nobody begins or ends."""
    engine = ConsisID.open(folder, device="cuda", memory=memory)
    steps = 4
    many = [
        {**request, "num_inference_steps": steps, "seed": None, "generator": torch.Generator("cuda").manual_seed(5)}
        for request in requests(person)
    ]
    list(engine.generate_many(many, together=3))
    marks = []
    many[-1]["callback_on_step_end"] = lambda *_: marks.append(hollow.position) or {}
    with hollow.recorded() as record:
        jobs = list(engine.generate_many(many, together=3))
    assert [job.error for job in jobs] == [None] * 3
    inside = record.calls[marks[0] : marks[-2]]  # what ends is looked at behind the last
    # Without a plan memory is the allocator's own: PyTorch 2.14 asks once for a small segment. Nothing waits for that.
    asked = {Kind.MALLOC} if memory is None else set()
    assert len(inside) > 100
    assert [call for call in inside if call.waits and call.kind not in asked] == []
