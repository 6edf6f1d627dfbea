"""What stages hand on to each other, counted by hand."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from support.plans import sizes_of
from torch._subclasses.fake_tensor import FakeTensorMode

from consisid.engine.graphs.table import graph_table
from consisid.engine.memory import tracing
from consisid.engine.memory.allocator import peak_bytes
from consisid.engine.memory.costs import OVERLAP, SPLITS, video_costs
from consisid.engine.memory.tracing import count_decode
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, TINY
from consisid.kernels import whole

SHAPE = VideoShape.of(PREVIEW, 480, 720, 49)
WIDTH, STEPS = 2, 50  # bytes of a number in bfloat16
DIM, LAYERS, TOKENS = 3072, 42, 226
VIDEO = 13 * 30 * 45  # tokens
LATENT = 13 * 16 * 60 * 90


@pytest.fixture(scope="module")
def stages():
    """On a device that rounds nothing, in bfloat16, with guidance."""
    return {s.name: s for s in video_costs(PREVIEW, SHAPE, torch.bfloat16, steps=STEPS).stages}


def test_the_modulation_of_all_steps_is_held_from_its_stage_on(stages):
    """Two norms, text and video, three of each: 12 rows a block and step."""
    table = STEPS * LAYERS * 12 * DIM * WIDTH
    assert stages["schedule"].data - stages["prepare"].data == table
    assert stages["denoise"].data == stages["schedule"].data


def test_eight_latents_in_float32_are_held_in_the_loop(stages):
    assert stages["decode"].data == 8 * LATENT * 4


def test_what_the_loop_is_given(stages):
    face = 2 * PREVIEW.transformer.num_cross_attn * 16 * 32 * DIM * WIDTH
    text = 2 * TOKENS * 4096 * WIDTH
    rotary = 2 * VIDEO * 64 // 2 * 4
    given = 2 * TOKENS * DIM * WIDTH + VIDEO * DIM * WIDTH + face + rotary
    assert stages["face"].data == face
    assert stages["text"].data == text
    assert stages["prepare"].data == text + 8 * LATENT * 4 + given
    assert stages["photo"].data == stages["image"].data == 0


def test_tiles_hold_two_chunks_of_frames_beside_a_tile(stages):
    """Tiles are blended in frames of the whole size: 9 of 3 channels, in two pieces."""
    whole = peak_bytes(count_decode(PREVIEW, (60, 90), 13, torch.bfloat16, False))
    frames = 2 * 3 * 9 * 480 * 720 * WIDTH
    tiles = stages["decode"].tiles
    assert len(tiles) == len(SPLITS)
    for tile in tiles:
        share = tile.tile[0] * tile.tile[1] / (60 * 90)
        assert tile.working == pytest.approx(frames + share * whole, rel=1e-4)
        split = SPLITS[tiles.index(tile)]
        assert tile.arithmetic == pytest.approx(split**2 * share)
        assert tile.tile[1] * (split - (split - 1) * OVERLAP) >= 90  # they cover the frame


def test_a_process_takes_memory_of_a_gpu_and_none_of_a_cpu():
    assert video_costs(PREVIEW, SHAPE, torch.bfloat16, steps=STEPS).overhead == 0
    assert sizes_of("preview").overhead == (800 + 32 + 8 + 28) * 2**20


def test_several_videos_hand_on_all_that_is_theirs(stages):
    """And work beside each other in the loop, which has the weights but once."""
    many = {s.name: s for s in video_costs(PREVIEW, SHAPE, torch.bfloat16, steps=STEPS, beside=3).stages}
    hidden = 2 * (TOKENS + VIDEO) * DIM * WIDTH
    loop = stages["denoise"].data + hidden
    assert many["denoise"].data == 3 * loop
    assert all(many[name].data == 2 * loop + stages[name].data for name in stages if name != "denoise")
    # Hidden states are apart: in the memory for what comes and goes there is that of the present call alone.
    for mode, working in stages["denoise"].working:
        less = working - dict(many["denoise"].working)[mode]
        assert 0 <= less <= hidden / (2 if mode == "sequential" else 1)
    one, all_of_them = stages["denoise"], many["denoise"]
    assert (all_of_them.passes, all_of_them.together, all_of_them.fixed) == (one.passes, one.together, one.fixed)
    assert [unit.bytes for unit in all_of_them.units] == [unit.bytes for unit in one.units]
    assert [unit.flops for unit in all_of_them.units] == [3 * unit.flops for unit in one.units]


@contextmanager
def on_a_cpu(fused):
    """PyTorch's stand-ins for tensors on a CPU, which take several times as long as the meta device."""
    with FakeTensorMode(), torch.no_grad(), whole() if fused else nullcontext():
        yield


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["text_layer", "retinaface", "decode_next", "block"])
def test_the_meta_device_asks_for_what_a_cpu_asks_for(name, fused, monkeypatch):
    """Attention that stores no scores, convolutions in pieces, a batch norm that saves nothing."""
    graph, sizes = graph_table(TINY, VideoShape.of(TINY, None, None, None))[name], {"B": 2, "H": 96, "W": 128}
    found = tracing.count(graph, sizes, torch.float32, fused)
    monkeypatch.setattr(tracing, "without_data", on_a_cpu)
    assert found == tracing.count(graph, sizes, torch.float32, fused)
