"""The same bytes wherever the weights are; buffers as planned; nothing read or overwritten at the wrong time."""

import pytest
import torch
from support.engines import SHALLOW
from support.loras import MODULES, lora
from support.people import random_identity
from support.residency import OPTIONS, PROMPT, SHAPE, LateCopies, forced, latents, put

from consisid.engine import ConsisID
from consisid.engine.errors import MemoryBudgetError
from consisid.engine.graphs.table import graph_table
from consisid.engine.memory.allocator import aligned
from consisid.engine.memory.costs import video_costs
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import TINY
from consisid.engine.weights.device import DeviceWeights

pytestmark = pytest.mark.slow

STAGE_OF = {name: graph.stage for name, graph in graph_table(SHALLOW, VideoShape.of(SHALLOW, None, None, None)).items()}


@pytest.mark.parametrize(
    ("streamed", "buffers", "cfg", "pinned", "room"),
    [
        (0, 2, "batched", False, 0),
        (2, 2, "batched", True, 0),
        (3, 2, "sequential", False, 0),
        (3, 3, "batched", False, 0),
        (4, 2, "sequential", True, 0),
        (4, 4, "batched", True, 0),
        (0, 2, "batched", False, 2**30),
        (2, 2, "sequential", True, 2**30),
        (4, 2, "batched", False, 2**10),
        (4, 4, "batched", True, 2**30),
    ],
)
def test_same_bytes_for_any_residency(engine, expected, monkeypatch, streamed, buffers, cfg, pinned, room):
    copy_stream = LateCopies()
    put(engine, forced(engine, streamed, buffers, cfg, room), monkeypatch, copy_stream)
    engine.weights.host.keep = pinned
    assert torch.equal(latents(engine), expected[cfg])
    # A second video, whose first stages find their results; then one that passes over a stage's first calls.
    assert torch.equal(latents(engine), expected[cfg])


def test_packed_tensors_begin_where_the_allocator_would_let_them(shallow):
    """In bfloat16, which a file of float32 cannot give in place."""
    table = graph_table(SHALLOW, shallow.shape)
    store, pieces = DeviceWeights(shallow.weights.tensors, shallow.device, torch.bfloat16), list[torch.Tensor]()

    def buffer(size):
        pieces.append(torch.empty(size, dtype=torch.uint8))
        return pieces[-1]

    store.pack({name: (table[name], list(table[name].weights)) for name in ("head", "embed")}, buffer)
    (piece,) = pieces
    places = [tensor.data_ptr() - piece.data_ptr() for tensor in store._held.values()]
    assert len(places) > 3
    assert not [place for place in places if place % aligned(1)]


@pytest.mark.parametrize(("streamed", "pinned"), [(0, False), (3, False), (4, True), (2, True)])
def test_same_bytes_for_any_residency_with_a_lora(engine, shallow, monkeypatch, streamed, pinned):
    """One, another, none: what was kept of the weights with the one before is not used again."""
    put(engine, forced(engine, streamed, 2, room=2**30), monkeypatch, LateCopies())
    engine.weights.host.keep, person = pinned, random_identity(TINY)
    states = [lora(shallow.checkpoint), lora(shallow.checkpoint, 1, modules=MODULES[::3]), None]
    try:
        for state in states:
            for owner in (shallow, engine):
                owner.unload_lora_weights()
                if state is not None:
                    owner.load_lora_weights(state)
            right = latents(shallow, person)
            assert torch.equal(latents(engine, person), right)
            assert torch.equal(latents(engine, person), right)
            # What the loop streams is in pinned memory if anything is; what other stages stream never is.
            assert bool(engine.weights.host._flat) == pinned
            assert bool(engine.weights.host._merged) == (state is not None)
    finally:
        shallow.unload_lora_weights()


@pytest.mark.parametrize(("streamed", "buffers"), [(0, 2), (4, 2), (3, 3)])
def test_the_next_stage_comes_ahead(engine, expected, monkeypatch, streamed, buffers):
    """Its first units, those of the plan and no others, are on their way before the last call of the stage before, in
    the memory that the plan has for them; they are copied once. A stage that is passed over is forgotten."""
    plan, copy_stream, log = forced(engine, streamed, buffers, room=2**30), LateCopies(), []
    put(engine, plan, monkeypatch, copy_stream)
    weights, fill, done = engine.weights, engine.weights.host.fill, engine.weights.release

    def filling(graph, names, layer, buffer):
        log.append(("copy", weights._stage, (graph.name, layer)))
        return fill(graph, names, layer, buffer)

    def finished(name, layer):
        log.append(("call", STAGE_OF[name], (name, layer)))
        done(name, layer)

    monkeypatch.setattr(weights.host, "fill", filling)
    monkeypatch.setattr(weights, "release", finished)
    assert torch.equal(latents(engine, random_identity(TINY)), expected["batched"])
    for stage in ("image", "prepare", "schedule"):  # those that a stage with units follows; identities have no photo
        early = [
            i for i, (kind, now, key) in enumerate(log) if (kind, now) == ("copy", stage) and STAGE_OF[key[0]] != stage
        ]
        last = max(i for i, (kind, now, _) in enumerate(log) if (kind, now) == ("call", stage))
        assert [log[i][2] for i in early] == list(plan.stage(stage).ahead) != []
        assert max(early) < last
    homes = [key for kind, _, key in log if kind == "copy" and key in plan.stage("denoise").resident]
    assert sorted(homes) == sorted(plan.stage("denoise").resident)
    made = {stage.name: [*stage.resident, *stage.streamed] for stage in plan.stages}
    bytes_of = {key: weights.host.size(weights._graphs[key[0]][0]) for keys in made.values() for key in keys}
    entered = [stage for stage in plan.stages if stage.name not in ("photo", "decode")]  # an identity, and latents
    assert sorted(copy_stream.allocated) == sorted(
        [bytes_of[key] for stage in entered for key in stage.resident]
        + [stage.buffer_bytes for stage in entered for _ in range(stage.buffers)]
        + [fixed_bytes(engine)[stage.name] for stage in entered if fixed_bytes(engine)[stage.name]]
    )
    # The prompt is known: what comes ahead of the text, beside the image, is for nothing, and does no harm.
    assert torch.equal(latents(engine, random_identity(TINY)), expected["batched"])
    assert weights._prepared is None


def fixed_bytes(engine) -> dict[str, int]:
    """By stage, the piece of memory for the weights that never stream, as plans count it."""
    found = video_costs(SHALLOW, SHAPE, engine.dtype, steps=OPTIONS["num_inference_steps"])
    return {stage.name: stage.fixed for stage in found.stages}


def test_modes_agree(expected):
    assert (expected["batched"] - expected["sequential"]).abs().max() < 1e-4


def test_buffers_are_those_of_the_plan(engine, monkeypatch):
    """Allocated when a stage begins, as many and as large as planned, and none in the loop."""
    plan, copy_stream = forced(engine, 3, 2), LateCopies()
    put(engine, plan, monkeypatch, copy_stream)
    enter, counted = engine.weights._enter, {}

    def counting(stage):
        enter(stage)
        counted[stage], copy_stream.allocated = copy_stream.allocated, []

    monkeypatch.setattr(engine.weights, "_enter", counting)
    take, late = engine.weights.acquire, []

    def taking(name, layer):
        tensors = take(name, layer)
        late.extend(copy_stream.allocated)
        return tensors

    monkeypatch.setattr(engine.weights, "acquire", taking)
    latents(engine)
    assert late == []
    for stage in plan.stages:
        if stage.resident or stage.streamed:
            units = [engine.weights.host.size(engine.weights._graphs[name][0]) for name, _ in stage.resident]
            fixed = [count for name, count in fixed_bytes(engine).items() if name == stage.name and count]
            assert sorted(counted[stage.name]) == sorted([*units, *[stage.buffer_bytes] * stage.buffers, *fixed])


def test_a_buffer_is_filled_again_only_after_a_wait(engine, monkeypatch):
    """Every copy into memory that a call has read comes after the copy stream waited for a later `used`."""
    copy_stream = LateCopies()
    put(engine, forced(engine, 4, 2), monkeypatch, copy_stream)
    engine.weights.host.keep = True
    latents(engine)
    start = max(i for i, entry in enumerate(copy_stream.log) if entry[0] == "step")
    first = min(i for i, entry in enumerate(copy_stream.log) if entry[0] == "step")
    loop = copy_stream.log[first:start]
    copies = [i for i, entry in enumerate(loop) if entry[0] == "copy"]
    assert copies
    for i in copies:
        kind, event = loop[i - 1]
        assert kind == "copy waits"
        assert ("used", event) in copy_stream.log


def test_stages_hand_the_device_over(engine, monkeypatch):
    """While a stage runs, no weights of another are bound; modulation leaves before the loop."""
    put(engine, forced(engine, 4, 2), monkeypatch)
    take, seen = engine.weights.acquire, []

    def watching(name, layer):
        tensors = take(name, layer)
        seen.append(STAGE_OF[name])
        assert {STAGE_OF[graph] for graph, _ in engine.weights._bound} <= {STAGE_OF[name]}
        order = engine.weights._prefetcher.order if engine.weights._prefetcher else []
        assert {STAGE_OF[graph] for graph, _ in order} <= {STAGE_OF[name]}
        return tensors

    monkeypatch.setattr(engine.weights, "acquire", watching)
    engine.generate(random_identity(TINY), PROMPT, **{**OPTIONS, "output_type": "uint8"})
    order = list(dict.fromkeys(seen))
    assert order == ["face", "image", "text", "prepare", "schedule", "denoise", "decode"]
    assert engine.weights._bound == {}
    assert engine.weights._prefetcher is None


def test_a_stage_that_comes_back(engine, shallow, monkeypatch):
    """A callback that replaces the embeddings and the timesteps calls for weights that have left."""
    put(engine, forced(engine, 4, 2), monkeypatch, LateCopies())

    def callback(owner, step, timestep, tensors):
        if step == 0:
            owner.scheduler.timesteps[1] = 500
        return {"prompt_embeds": tensors["prompt_embeds"] + 1} if step == 1 else {}

    extra = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    assert torch.equal(latents(engine, **extra), latents(shallow, cfg="batched", **extra))


def test_random_weights_stream_too(tmp_path, monkeypatch):
    from consisid.export import build

    build("tiny", tmp_path / "random", backend="eager", random_weights=True)
    engine = ConsisID.open(tmp_path / "random")
    resident = latents(engine)
    put(engine, forced(engine, 4, 2), monkeypatch, LateCopies())
    assert torch.equal(latents(engine), resident)


def test_open_with_a_budget(shallow_folder, shallow, expected):
    with pytest.raises(MemoryBudgetError) as refusal:
        ConsisID.open(shallow_folder, memory="1MiB")
    least = str(refusal.value).split("budget that works is ")[1].rstrip(".")
    engine = ConsisID.open(shallow_folder, memory=least)
    assert engine.weights._bound == {}
    video = engine.generate(random_identity(TINY), PROMPT, **OPTIONS)
    assert torch.equal(video.latents, expected[engine.weights.plan.cfg])
    assert video.stats.predicted_bytes == engine.plan(least, shape=SHAPE, steps=3).peak
    assert len(video.stats.stalls) == OPTIONS["num_inference_steps"]
    assert video.stats.streamed_bytes > 0
    assert video.stats.modes["memory"] == engine.weights.plan.mode
    assert str(engine.plan(least)).startswith("tiny")


def test_a_budget_that_only_a_larger_batch_breaks(shallow_folder):
    """Planned for one video at opening, and anew for each request: refused before anything is loaded."""
    engine = ConsisID.open(shallow_folder, memory="230MiB")
    with pytest.raises(MemoryBudgetError, match="4096 videos"):
        engine.generate(random_identity(TINY), [PROMPT] * 4096, **OPTIONS)
    assert not any(engine.networks(SHAPE).calls.values())


def test_units_are_aligned(engine):
    assert aligned(1) == aligned(512) == 512
    graph, names = engine.weights._graphs["block"]
    buffer = torch.zeros(engine.weights.host.size(graph), dtype=torch.uint8)
    views = engine.weights.host.views(graph, names, buffer)
    assert all((view.data_ptr() - buffer.data_ptr()) % 512 == 0 for view in views)
