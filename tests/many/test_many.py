"""Many videos at once: each with the bytes that it has alone, whatever becomes of the others."""

import math
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.loras import lora
from support.people import random_face, random_identity
from support.residency import LateCopies, forced, put

from consisid.engine import ConsisID, VideoQueue, VideoRequest
from consisid.engine.errors import DeviceMemoryError, InputError, MemoryBudgetError, NumericalError
from consisid.engine.many import group
from consisid.engine.many.group import SIZES
from consisid.engine.memory.simulate import Machine
from consisid.engine.variants import TINY

pytestmark = pytest.mark.slow

SMALL = {"height": 96, "width": 144, "num_frames": 9, "output_type": "latent"}
PEOPLE = [random_identity(TINY, seed) for seed in range(3)]
REQUESTS = [
    {"identity": PEOPLE[0], "prompt": "A man walks.", "seed": 1, "num_inference_steps": 4},
    {"identity": PEOPLE[1], "prompt": "A woman sings.", "seed": 2, "num_inference_steps": 3, "cfg": "sequential"},
    {"identity": PEOPLE[2], "prompt": "A man runs.", "seed": 3, "num_inference_steps": 2, "use_dynamic_cfg": True},
    {"identity": PEOPLE[1], "prompt": "A woman reads.", "seed": 4, "num_inference_steps": 5, "guidance_scale": 1.0},
    {"identity": PEOPLE[0], "prompt": "A man swims.", "seed": 5, "num_inference_steps": 4,
     "shortcuts": {"cache": "2x"}},
    {"identity": PEOPLE[2], "prompt": "A child laughs.", "seed": 6, "num_inference_steps": 3,
     "negative_prompt": "Rain."},
    {"identity": PEOPLE[0], "prompt": "A man cooks.", "seed": 7, "num_inference_steps": 4},
    {"identity": PEOPLE[1], "prompt": "A woman paints.", "seed": 8, "num_inference_steps": 6},
]  # fmt: skip
WAIT = 120  # seconds until a test says that somebody hangs


@pytest.fixture(scope="module")
def engine(shallow_folder):
    return ConsisID.open(shallow_folder)


def request(index, **options):
    return VideoRequest(**{**SMALL, **REQUESTS[index], **options})


@pytest.fixture(scope="module")
def alone(engine):
    """The latents of each request by itself, made when they are first asked for."""
    made = {}

    def of(index):
        if index not in made:
            made[index] = engine.generate(**{**SMALL, **REQUESTS[index]}).latents
        return made[index]

    return of


def by_request(jobs):
    return {job.request: job for job in jobs}


@pytest.mark.parametrize("memory", [None, "115MiB"], ids=["resident", "streaming"])
def test_accidents_disturb_nobody(shallow_folder, engine, alone, memory):
    """Of eight at once one is cancelled, one has NaN, one is late and one is no request that could be made."""
    if memory is not None:
        engine = ConsisID.open(shallow_folder, memory=memory)
    queue, late = VideoQueue(), []

    def cancel(job, step, latents):
        if step == 1:
            job.cancel()

    def join(job, step, latents):
        if step == 0:
            late.append(queue.submit(request(7)))
            queue.close()

    def poison(pipe, step, timestep, tensors):
        return {"latents": torch.full_like(tensors["latents"], math.nan) if step == 1 else tensors["latents"]}

    jobs = [queue.submit(request(index)) for index in range(5)]
    jobs[0].on_step, jobs[3].on_step = cancel, join
    poisoned = queue.submit(request(5, callback_on_step_end=poison))
    wrong = queue.submit(request(6, num_frames=10))
    ended = list(engine.generate_many(queue, together=8))
    assert len(ended) == len({id(job) for job in ended}) == 8
    assert {job.state for job in ended} == {"done", "failed", "cancelled"}
    assert (jobs[0].state, jobs[0].step, jobs[0].video) == ("cancelled", 2, None)
    assert isinstance(poisoned.error, NumericalError)
    assert "after step 2 of 3" in str(poisoned.error)
    assert isinstance(wrong.error, InputError)
    assert "num_frames=10" in str(wrong.error)
    made = {**dict(enumerate(jobs)), 7: late[0]}
    del made[0]
    for index, job in made.items():
        assert torch.equal(job.result().latents, alone(index)), index
    assert late[0].step == late[0].steps == 6


def test_the_weights_are_needed_once_for_all(shallow_folder, monkeypatch):
    """Of the loop in each step, and of the text encoder for all prompts; copied as late as may be, each in its turn."""
    streaming = ConsisID.open(shallow_folder)
    plan, filled, fill = forced(streaming, 4, 2), Counter(), streaming.weights.host.fill
    put(streaming, plan, monkeypatch, LateCopies())
    monkeypatch.setattr(group, "plan_of", lambda *_, **__: replace(plan, label="for several"))

    def counted(graph, names, layer, buffer):
        filled[graph.name, layer] += 1
        return fill(graph, names, layer, buffer)

    monkeypatch.setattr(streaming.weights.host, "fill", counted)
    steps = [3, 2, 3, 1]
    requests = [
        {**REQUESTS[0], **SMALL, "seed": 10 + i, "prompt": f"A man counts {i}.", "num_inference_steps": count}
        for i, count in enumerate(steps)
    ]
    expected = [streaming.generate(**each).latents for each in requests]
    one, streamed = Counter(filled), plan.stage("denoise").streamed
    assert [one[key] for key in streamed] == [sum(steps)] * len(streamed)
    assert {one[key] for key in plan.stage("text").streamed} == {len(steps) + 1}  # the empty prompt once
    streaming.text_encoder._kept.clear()
    filled.clear()
    jobs = list(streaming.generate_many(requests, together=4))
    for latents, each in zip(expected, sorted(jobs, key=lambda job: job.request.options.seed), strict=True):
        assert torch.equal(each.result().latents, latents)
    assert [filled[key] for key in streamed] == [max(steps)] * len(streamed)
    assert {filled[key] for key in plan.stage("text").streamed} == {1}


def test_what_is_read_ahead(engine):
    """The requests are asked for no further than will soon begin, and nothing is made before it is asked for."""
    asked = []

    def requests():
        for index in range(100):
            asked.append(index)
            yield request(2, num_inference_steps=1)

    jobs = engine.generate_many(requests(), together=2)
    assert asked == []
    assert next(jobs).state == "done"
    assert len(asked) <= 2 * 2
    jobs.close()
    assert len(asked) <= 2 * 2
    assert engine.active is None


def test_a_queue_has_an_end_and_an_order(engine):
    queue = VideoQueue(limit=3)
    low, high, last = (queue.submit(request(2, seed=seed), priority) for seed, priority in ((1, 0), (2, 5), (3, 0)))
    with pytest.raises(InputError, match="3 requests wait already"):
        queue.submit(request(0))
    last.cancel()
    queue.close()
    with pytest.raises(InputError, match="closed"):
        queue.submit(request(0))
    ended = list(engine.generate_many(queue, together=1))
    assert ended == [last, high, low]
    assert [job.state for job in ended] == ["cancelled", "done", "done"]
    with pytest.raises(Exception, match="cancelled"):
        last.result()


def test_what_is_no_request(engine):
    with pytest.raises(InputError, match="neither a VideoQueue nor several"):
        engine.generate_many(request(0))
    with pytest.raises(InputError, match="together=9 has to be"):
        engine.generate_many([], together=9)
    with pytest.raises(InputError, match="no 'steps'"):
        VideoRequest(PEOPLE[0], "A man walks.", steps=3)
    with pytest.raises(InputError, match="Nobody was given"):
        VideoRequest(prompt="A man walks.")
    assert list(engine.generate_many([])) == []
    first, second = engine.generate_many([3, {"prompt": "x"}])
    assert (first.state, second.state) == ("failed", "failed")
    assert "3 is no request" in str(first.error)


def test_others_have_their_turn(engine, alone):
    """Another thread makes a video while several are under way, and a callback another one."""
    found, threads = {}, []

    def nested(pipe, step, timestep, tensors):
        if step == 0:
            found["nested"] = engine.generate(**{**SMALL, **REQUESTS[2]}).latents
            work = threading.Thread(
                target=lambda: found.update(thread=engine.generate(**{**SMALL, **REQUESTS[0]}).latents)
            )
            threads.append(work)
            work.start()
        return tensors

    requests = [request(1, callback_on_step_end=nested), request(3), request(7)]
    jobs = by_request(engine.generate_many(requests, together=3))
    threads[0].join(WAIT)
    for given, index in zip(requests, (1, 3, 7), strict=True):
        assert torch.equal(jobs[given].result().latents, alone(index))
    assert torch.equal(found["nested"], alone(2))
    assert torch.equal(found["thread"], alone(0))


def test_out_of_memory_beside_others(engine, alone, monkeypatch):
    """It is made again beside fewer; where there is nobody else, the sentence says what would do."""
    own, failing = engine.networks().__class__.__call__, {"left": 1}

    def call(networks, name, *inputs, layer=0):
        if name == "last_block" and failing["left"]:
            failing["left"] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(networks, name, *inputs, layer=layer)

    monkeypatch.setattr(engine.networks().__class__, "__call__", call)
    requests = [request(index) for index in (0, 1, 3)]
    jobs = by_request(engine.generate_many(requests, together=3))
    for given, index in zip(requests, (0, 1, 3), strict=True):
        assert torch.equal(jobs[given].result().latents, alone(index))
    failing["left"] = 1
    (job,) = engine.generate_many([request(0)])
    assert isinstance(job.error, DeviceMemoryError)
    assert "The next smaller plan takes" in str(job.error)
    failing["left"] = 1
    (job,) = engine.generate_many([request(0, on_oom="replan")])
    assert job.video.stats.modes["restarts"] == "1 after running out of memory"


def test_frames_as_they_are_read(engine):
    """A stream of frames lasts beside the loops of others."""
    sizes = {**SMALL, "output_type": "uint8"}
    expected = [engine.generate(**{**sizes, **REQUESTS[index]}).frames for index in (2, 3)]
    requests = [request(2, output_type="stream"), request(3, output_type="uint8")]
    jobs = engine.generate_many(requests, together=2)
    first = next(jobs)
    frames = [next(first.video.frames)]
    second = next(jobs)
    frames += list(first.video.frames)
    assert np.array_equal(np.stack(frames), expected[0])
    assert np.array_equal(second.video.frames, expected[1])
    assert list(jobs) == []


def test_other_shapes_and_loras_wait(shallow_folder):
    """What cannot go together begins when the others have ended."""
    engine, order = ConsisID.open(shallow_folder), []
    engine.load_lora_weights(lora(engine.checkpoint))

    def noted(name):
        def on_step(job, step, latents):
            order.append(name)

        return on_step

    queue = VideoQueue()
    half = {"attention_kwargs": {"scale": 0.5}}
    for name, options in (("a", {}), ("b", {"num_frames": 17}), ("c", {}), ("d", half), ("e", half)):
        queue.submit(request(2, **options)).on_step = noted(name)
    queue.close()
    jobs = list(engine.generate_many(queue, together=4))
    assert [job.error for job in jobs] == [None] * 5
    assert order == ["a", "a", "b", "b", "c", "c", "d", "e", "d", "e"]
    (alone,) = {id(job): job for job in engine.generate_many([request(2, **half)])}.values()
    assert torch.equal(alone.video.latents, jobs[3].video.latents)


def test_the_plan_chooses_how_many(shallow_folder, monkeypatch):
    """Where weights come slowly, several videos at once take less time each."""
    slow = Machine("slow link", 1e14, 1e9, "of a test")
    monkeypatch.setattr("consisid.engine.engine.machine_named", lambda gpu: slow)
    engine = ConsisID.open(shallow_folder, memory="115MiB")
    seconds = {}
    for count in SIZES:
        try:
            seconds[count] = engine.plan("115MiB", shape=engine.shape, steps=2, beside=count).seconds / count
        except MemoryBudgetError:
            break
    best = min(count for count in seconds if seconds[count] <= 1.02 * min(seconds.values()))
    assert best > 1
    requests = [{**REQUESTS[2], "seed": seed, "output_type": "latent"} for seed in range(best)]
    jobs = list(engine.generate_many(requests))
    sizes = {job.video.stats.modes["memory"] for job in jobs}
    assert sizes == {engine.plan("115MiB", shape=engine.shape, steps=2, beside=best).mode}


def test_photos_are_people(engine):
    photo = random_face()
    (job,) = engine.generate_many([{**SMALL, "image": photo, "aligned": True, "prompt": "A man.", "seed": 1,
                                    "num_inference_steps": 1}])  # fmt: skip
    expected = engine.generate(photo, "A man.", aligned=True, seed=1, num_inference_steps=1, **SMALL)
    assert torch.equal(job.result().latents, expected.latents)
