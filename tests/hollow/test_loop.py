"""The denoising loop as the device sees it: what is launched, what the host waits for, in which order weights come."""

from itertools import pairwise

import pytest
import torch
from hollow.calls import LAUNCHES, Flags, Kind

from consisid.engine import ConsisID

from .conftest import OPTIONS, PROMPT, record_steps

STEPS = 5
# Launches of a step of TINY, eager, in bfloat16, guidance at once: kernels, and calls of cuBLAS and cuDNN.
LAUNCHED = dict.fromkeys(("2.11", "2.13", "2.14"), (63, 18))
NOISE = 3 * 16 * 12 * 18 * 2  # bytes of TINY's latents at 9 frames


@pytest.fixture(scope="module")
def generator(loaded):
    """On the device: its noise needs no copy."""
    return torch.Generator("cuda").manual_seed(5)


def middle(steps):
    """The steps that are like all others: neither the first, which the scheduler and the allocator begin with, nor the
    last, whose noise is none."""
    return steps.calls[2:-1]


def test_a_step_launches_so_many_kernels(hollow, engine, person):
    version = ".".join(torch.__version__.split(".")[:2])
    if version not in LAUNCHED:
        pytest.skip(f"how many kernels PyTorch {version} launches is not written down")
    engine.generate(person, PROMPT, **OPTIONS)
    steps = record_steps(hollow, engine, person, num_inference_steps=STEPS)
    assert {(step.counts[Kind.KERNEL], step.counts[Kind.LIBRARY]) for step in middle(steps)} == {LAUNCHED[version]}


@pytest.mark.parametrize("memory", [None, "4GiB"])
def test_the_host_waits_for_nothing_in_the_loop(hollow, folder, person, generator, memory):
    """Between the first launch of the second step and the last of the last one: no synchronisation, no memory taken or
    given back, no copy that blocks."""
    engine = ConsisID.open(folder, device="cuda", memory=memory)
    options = {"num_inference_steps": STEPS, "generator": generator, "seed": None}
    engine.generate(person, PROMPT, **options)
    steps = record_steps(hollow, engine, person, **options)
    for step in steps.calls[1:]:
        assert [call for call in step.calls if call.waits] == []


def test_noise_of_a_generator_on_the_cpu_is_all_that_blocks(hollow, engine, person):
    """The scheduler draws it twice in every step, as diffusers does; each comes in one copy from pageable memory."""
    engine.generate(person, PROMPT, **OPTIONS)
    steps = record_steps(hollow, engine, person, num_inference_steps=STEPS)
    for step in middle(steps):
        waits = [call for call in step.calls if call.waits]
        assert [call.kind for call in waits] == 2 * [Kind.TO_DEVICE, Kind.STREAM_SYNC]
        assert {call.bytes for call in step.of(Kind.TO_DEVICE)} == {NOISE}


@pytest.fixture(scope="module")
def wide_steps(loaded, wide_folder, person, generator):
    """WIDE within a budget in which all its blocks stream, recorded."""
    engine = ConsisID.open(wide_folder, device="cuda", memory="1GiB")
    options = {"num_inference_steps": STEPS, "generator": generator, "seed": None}
    assert len(engine.plan("1GiB", steps=STEPS).stage("denoise").streamed) == 8
    engine.generate(person, PROMPT, **options)
    return record_steps(loaded, engine, person, **options)


def test_streaming_makes_the_host_wait_for_nothing(wide_steps):
    for step in wide_steps.calls[1:]:
        assert [call for call in step.calls if call.waits] == []


def test_weights_come_in_one_copy_each_from_pinned_memory(wide_steps):
    passes = 2 if wide_steps.made.stats.modes["cfg"] == "sequential" else 1
    for step in middle(wide_steps):
        copies = step.of(Kind.TO_DEVICE)
        assert len(copies) == 8 * passes
        assert all(call.flags == Flags(0) for call in copies)
        assert len({call.stream for call in copies}) == 1
        assert {call.stream for call in copies}.isdisjoint({call.stream for call in step.of(*LAUNCHES)})
        assert len({call.bytes for call in copies}) == 1


def test_every_buffer_of_the_ring_is_at_the_same_address_in_every_step(wide_steps):
    rings = [[call.address for call in step.of(Kind.TO_DEVICE)] for step in middle(wide_steps)]
    assert len(set(rings[0])) == 2
    assert all(a != b for a, b in pairwise(rings[0]))
    assert all(set(ring) == set(rings[0]) for ring in rings)


def test_a_copy_waits_for_the_call_that_reads_its_buffer_and_the_next_call_for_the_copy(wide_steps):
    """computation: wait for copy | call | record; copies: wait for that | copy | record; computation: wait for that."""
    calls, first = wide_steps.whole.calls, len(wide_steps.calls[0].calls)
    place = {call.event: i for i, call in enumerate(calls) if call.kind is Kind.EVENT_RECORD}
    in_loop = range(first, first + sum(len(step.calls) for step in wide_steps.calls[1:]))
    weights = [i for i in in_loop if calls[i].kind is Kind.TO_DEVICE]
    copying = calls[weights[0]].stream
    assert {calls[i].stream for i in weights} == {copying} != {0}
    begun: dict[int, int] = {}  # by buffer: where computation waited for what is in it
    launched = []
    for i in weights:
        before = next(calls[j] for j in range(i - 1, 0, -1) if calls[j].stream == copying)
        after = next(calls[j] for j in range(i + 1, len(calls)) if calls[j].stream == copying)
        assert (before.kind, after.kind) == (Kind.EVENT_WAIT, Kind.EVENT_RECORD)
        read = place[before.event]
        assert calls[read].stream != copying
        if calls[i].address in begun:
            launched.append(sum(call.kind in LAUNCHES for call in calls[begun[calls[i].address] : read]))
        waits = (j for j in range(i, len(calls)) if calls[j].kind is Kind.EVENT_WAIT and calls[j].event == after.event)
        begun[calls[i].address] = next(waits, len(calls))
    # All nine launches of a block lie between.
    assert len(launched) >= 8 * (STEPS - 2)
    assert min(launched) >= 9
