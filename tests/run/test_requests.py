"""Several requests to one engine: each gives the bytes that it would give alone, whoever else asks, and when."""

import asyncio
import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from support.people import random_face, random_identity

from consisid.engine import ConsisID
from consisid.engine.errors import EngineError
from consisid.engine.util.turns import Turn, turn_of
from consisid.engine.variants import TINY

pytestmark = pytest.mark.slow

SMALL = {"height": 96, "width": 144, "num_frames": 9, "output_type": "latent"}
PEOPLE = [random_identity(TINY, seed) for seed in range(2)]
# Of each the number of steps, the guidance and the length of the loop are others.
REQUESTS = [
    {"identity": PEOPLE[0], "prompt": "A man walks.", "seed": 1, "num_inference_steps": 4},
    {"identity": PEOPLE[1], "prompt": "A woman sings.", "seed": 2, "num_inference_steps": 3, "cfg": "sequential"},
    {"identity": PEOPLE[0], "prompt": "A man runs.", "seed": 3, "num_inference_steps": 2, "use_dynamic_cfg": True},
    {"identity": PEOPLE[1], "prompt": "A woman reads.", "seed": 4, "num_inference_steps": 5, "guidance_scale": 1.0},
]
WAIT = 60  # seconds until a test says that somebody hangs


@pytest.fixture(scope="module", params=[None, "115MiB"], ids=["resident", "streaming"])
def engine(shallow_folder, request):
    return ConsisID.open(shallow_folder, memory=request.param)


@pytest.fixture(scope="module")
def alone(shallow):
    """The latents of each request, made one after the other."""
    return [make(shallow, i) for i in range(len(REQUESTS))]


def make(engine, index, **options):
    return engine.generate(**{**SMALL, **REQUESTS[index], **options}).latents


def lora(rank=2, seed=5):
    generator, dim = torch.Generator().manual_seed(seed), TINY.transformer.inner_dim
    return {
        f"transformer.transformer_blocks.1.attn1.to_q.lora_{part}.weight": torch.randn(size, generator=generator)
        for part, size in (("A", (rank, dim)), ("B", (dim, rank)))
    }


def waiting(engine):
    return len(turn_of(engine.device)._waiting)


def until(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "nobody came"
        time.sleep(0.001)


def test_threads_at_once(engine, alone):
    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        found = list(pool.map(lambda i: make(engine, i % len(REQUESTS)), range(2 * len(REQUESTS))))
    for i, latents in enumerate(found):
        assert torch.equal(latents, alone[i % len(REQUESTS)])


@pytest.mark.parametrize("step", [0, 2])
def test_others_that_come_within_a_callback_take_their_turn_in_order(engine, alone, step):
    """The others are waiting while the callback runs, and finish in the order in which they came."""
    order, found = [], {}
    threads = []

    def other(index):
        found[index] = make(engine, index, callback_on_step_end=lambda *_: order.append(index))

    def callback(pipeline, index, timestep, tensors):
        order.append(0)
        if index == step:
            for number in (3, 1, 2):
                threads.append(threading.Thread(target=other, args=[number]))
                threads[-1].start()
                until(lambda: waiting(engine) == len(threads))
        return tensors

    found[0] = make(engine, 0, callback_on_step_end=callback)
    for thread in threads:
        thread.join(WAIT)
    assert order == [0] * 4 + [3] * 5 + [1] * 3 + [2] * 2
    for index, latents in found.items():
        assert torch.equal(latents, alone[index])


def test_asyncio(engine, alone):
    async def serve():
        return await asyncio.gather(*(asyncio.to_thread(make, engine, i) for i in range(len(REQUESTS))))

    for latents, expected in zip(asyncio.run(serve()), alone, strict=True):
        assert torch.equal(latents, expected)


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("inner", range(1, len(REQUESTS)))
def test_a_video_within_a_callback(engine, alone, at, inner):
    """It is made whole, and the outer one goes on as if nothing had been."""
    made, timesteps = [], []

    def callback(pipeline, step, timestep, tensors):
        timesteps.append((step, pipeline.num_timesteps))
        if step == at:
            made.append(make(pipeline, inner))
        return {}

    assert torch.equal(make(engine, 0, callback_on_step_end=callback), alone[0])
    assert torch.equal(made[0], alone[inner])
    assert timesteps == [(step, 4) for step in range(4)]


def test_three_deep(engine, alone):
    def inner(pipeline, step, timestep, tensors):
        if step == 0:
            assert torch.equal(make(pipeline, 3), alone[3])

    def middle(pipeline, step, timestep, tensors):
        if step == 1:
            assert torch.equal(make(engine, 2, callback_on_step_end=inner), alone[2])

    assert torch.equal(make(engine, 0, callback_on_step_end=middle), alone[0])


def test_stats_of_a_run_are_its_own(shallow_folder):
    engine = ConsisID.open(shallow_folder, memory="115MiB")
    make(engine, 0)  # what is kept of the person, the prompt and the shape is there then
    make(engine, 1)

    def run(callback):
        return engine.generate(**{**SMALL, **REQUESTS[0]}, callback_on_step_end=callback).stats

    def callback(pipeline, step, timestep, tensors):
        if step == 1:
            make(engine, 1)

    plain, nested = run(None), run(callback)
    assert nested.calls == plain.calls
    assert len(nested.steps) == len(nested.stalls) == 4
    assert nested.modes == plain.modes


def test_a_stream_is_read_while_others_make_videos(engine, alone):
    """In turns in one thread, and at once in two; the device is free between two frames."""
    options = {**SMALL, **REQUESTS[1], "output_type": "uint8"}
    expected = engine.generate(**options).frames
    options["output_type"] = "stream"
    frames, read = engine.generate(**options).frames, []
    for frame in frames:
        read.append(frame)
        if len(read) in (1, 5):
            assert torch.equal(make(engine, 0), alone[0])
    assert np.array_equal(np.stack(read), expected)
    streams = [engine.generate(**options).frames for _ in range(2)]
    for pair in zip(*streams, strict=True):
        assert np.array_equal(*pair)
    with ThreadPoolExecutor(3) as pool:
        other = pool.submit(make, engine, 3)
        stacks = list(pool.map(lambda _: np.stack(list(engine.generate(**options).frames)), range(2)))
        assert torch.equal(other.result(WAIT), alone[3])
    assert all(np.array_equal(stack, expected) for stack in stacks)


@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_stream_that_ends_within_a_run(engine, alone, end):
    streams = [engine.generate(**{**SMALL, **REQUESTS[1], "output_type": "stream"}).frames]
    next(streams[0])

    def callback(pipeline, step, timestep, tensors):
        if step == 1:
            if end == "close":
                streams[0].close()
            streams.clear()
            gc.collect()

    assert torch.equal(make(engine, 0, callback_on_step_end=callback), alone[0])
    assert engine.active is None
    assert turn_of(engine.device)._owner is None


def test_identify_in_threads_and_within_a_callback(shallow_folder, alone):
    engine = ConsisID.open(shallow_folder)
    photos = [random_face(seed) for seed in range(3)]
    expected = [ConsisID.open(shallow_folder).identify(photo, aligned=True).id_cond for photo in photos]

    def callback(pipeline, step, timestep, tensors):
        assert torch.equal(pipeline.identify(photos[0], aligned=True).id_cond, expected[0])

    with ThreadPoolExecutor(4) as pool:
        video = pool.submit(make, engine, 0, callback_on_step_end=callback)
        found = list(pool.map(lambda i: engine.identify(photos[i % 3], aligned=True).id_cond, range(6)))
        assert torch.equal(video.result(WAIT), alone[0])
    for i, cond in enumerate(found):
        assert torch.equal(cond, expected[i % 3])


def test_loras_count_from_the_next_run_on(shallow_folder, alone):
    """Also for those that wait for their turn: what was active when they came."""
    engine = ConsisID.open(shallow_folder)
    engine.load_lora_weights(lora(), "first")
    with_it = make(engine, 0)
    engine.unload_lora_weights()
    later = []

    def callback(pipeline, step, timestep, tensors):
        if step == 1:
            with_out = threading.Thread(target=lambda: later.append(make(engine, 0)))
            with_out.start()
            until(lambda: waiting(engine) == 1)
            pipeline.load_lora_weights(lora(), "second")
            later.append(with_out)

    assert torch.equal(make(engine, 0, callback_on_step_end=callback), alone[0])
    later[0].join(WAIT)
    assert torch.equal(later[1], alone[0])
    assert torch.equal(make(engine, 0), with_it)
    assert not torch.equal(with_it, alone[0])


def test_loras_of_a_video_within_a_callback_are_not_those_of_the_outer_one(shallow_folder, alone):
    engine, made = ConsisID.open(shallow_folder, memory="115MiB"), []

    def callback(pipeline, step, timestep, tensors):
        if step == 1:
            pipeline.load_lora_weights(lora())
            made.append(make(pipeline, 0))
            pipeline.unload_lora_weights()

    assert torch.equal(make(engine, 0, callback_on_step_end=callback), alone[0])
    assert not torch.equal(made[0], alone[0])


def test_a_request_that_waits_has_the_scheduler_of_when_it_came(shallow_folder, alone):
    engine, later = ConsisID.open(shallow_folder), []

    def callback(pipeline, step, timestep, tensors):
        if step == 0:
            later.append(threading.Thread(target=lambda: later.append(make(engine, 1))))
            later[0].start()
            until(lambda: waiting(engine) == 1)
            engine.scheduler.alphas_cumprod = engine.scheduler.alphas_cumprod.mul_(0.9)

    assert torch.equal(make(engine, 0, callback_on_step_end=callback), alone[0])
    later[0].join(WAIT)
    assert torch.equal(later[1], alone[1])
    assert not torch.equal(make(engine, 1), alone[1])


def test_a_scheduler_belongs_to_a_run(shallow_folder, alone):
    """Neither what a callback does to it nor another one in its place changes a run that has begun."""
    engine = ConsisID.open(shallow_folder)
    given = engine.scheduler

    def callback(pipeline, step, timestep, tensors):
        engine.scheduler.set_timesteps(17)
        engine.scheduler = CogVideoXDDIMScheduler.from_config(given.config)

    assert torch.equal(make(engine, 0, callback_on_step_end=callback), alone[0])
    assert not torch.equal(make(engine, 0), alone[0])
    engine.scheduler = given
    assert torch.equal(make(engine, 0), alone[0])


def test_two_engines_of_one_folder(shallow_folder, alone):
    first, second = ConsisID.open(shallow_folder), ConsisID.open(shallow_folder, memory="115MiB")
    second.load_lora_weights(lora())
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(make, second, 0)
        assert torch.equal(make(first, 0), alone[0])
        changed = other.result(WAIT)
    assert not torch.equal(changed, alone[0])

    def callback(pipeline, step, timestep, tensors):
        assert torch.equal(make(second, 0), changed)

    assert torch.equal(make(first, 0, callback_on_step_end=callback), alone[0])
    assert torch.equal(make(second, 0), changed)


@pytest.mark.parametrize("inside", [False, True], ids=["callback", "thread"])
def test_the_engine_is_told_to_interrupt(engine, alone, inside):
    """As diffusers' pipelines: from a callback that knows the engine by its name, or from another thread."""
    steps = []

    def callback(pipeline, step, timestep, tensors):
        steps.append(step)
        if step == 1 and inside:
            engine._interrupt = True
        elif step == 1:
            thread = threading.Thread(target=lambda: setattr(engine, "_interrupt", True))
            thread.start()
            thread.join(WAIT)

    make(engine, 0, callback_on_step_end=callback)
    assert steps == [0, 1]
    assert torch.equal(make(engine, 0), alone[0])


def test_an_error_in_a_callback_leaves_nothing(engine, alone):
    def callback(pipeline, step, timestep, tensors):
        make(engine, 1)
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            make(engine, 0, callback_on_step_end=callback)
        assert turn_of(engine.device)._owner is None
        assert engine.active is None
    assert torch.equal(make(engine, 0), alone[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_refused(engine):
    """In one sentence, and not by hanging, whatever the parent was doing: here it holds the turn."""
    reader, writer = os.pipe()
    with engine.turn():
        child = os.fork()
        if child == 0:
            said = []
            for call in (lambda: make(engine, 0), lambda: engine.identify(random_face(), aligned=True)):
                try:
                    call()
                except EngineError as error:
                    said.append(str(error))
            os.write(writer, "\n".join(said).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        lines = answer.read().splitlines()
    os.waitpid(child, 0)
    assert len(lines) == 2
    assert all("was opened in another process" in line and "open the folder in this process" in line for line in lines)


def test_who_waits_may_give_up(monkeypatch):
    """An interrupt while waiting takes nobody's turn, and one that comes with the turn passes it on."""
    turn, got = Turn(), []

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            if self.late:
                until(self.is_set)
            raise KeyboardInterrupt

    for late in (False, True):
        Interrupted.late = late
        held, done = threading.Event(), threading.Event()

        def hold():
            with turn:
                held.set()  # noqa: B023
                done.wait(WAIT)  # noqa: B023

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(WAIT)
        with monkeypatch.context() as patch:
            patch.setattr("consisid.engine.util.turns.Event", Interrupted)
            if late:
                threading.Timer(0.05, done.set).start()
            with pytest.raises(KeyboardInterrupt):
                turn.__enter__()
        done.set()
        thread.join(WAIT)
        with turn:
            got.append(late)
        assert turn._owner is None
        assert not turn._waiting
    assert got == [False, True]


def test_what_is_to_be_done_soon():
    """At once where the device is free, else when its owner is done, in the owner's turn; an error is said."""
    turn, done = Turn(), []
    turn.soon(lambda: done.append(turn._owner))
    assert done == [threading.get_ident()]
    with turn:
        with turn:
            turn.soon(lambda: done.append("later"))
            turn.soon(lambda: 1 / 0)
        assert len(done) == 1
        with pytest.warns(UserWarning, match="ZeroDivisionError"):
            turn.__exit__(None, None, None)
        turn.__enter__()
    assert done[1:] == ["later"]
    assert turn._owner is None
