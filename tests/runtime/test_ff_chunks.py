"""The feed-forward of the blocks in pieces of the tokens: a mode of its own, for the smallest budgets."""

from dataclasses import replace

import pytest
import torch
from support.plans import sizes_of
from support.residency import OPTIONS, PERSON, PROMPT, SHAPE, LateCopies, forced, put

from consisid.engine.graphs.graph import in_ff_chunks
from consisid.engine.graphs.table import graph_table
from consisid.engine.memory.costs import ROWS
from consisid.engine.memory.planner import plan
from consisid.engine.memory.plans import MemoryPlan
from consisid.engine.memory.simulate import MACHINES
from consisid.engine.memory.tracing import count, count_flops
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, TINY

PREVIEW_SHAPE = VideoShape.of(PREVIEW, 480, 720, 49)


def in_pieces(found: MemoryPlan) -> MemoryPlan:
    return replace(found, stages=tuple(replace(s, rows=ROWS) if s.name == "denoise" else s for s in found.stages))


@pytest.mark.parametrize("cfg", ["batched", "sequential"])
def test_pieces_give_the_same_within_rounding(engine, expected, monkeypatch, cfg):
    """And the same bytes wherever the weights are."""
    videos = []
    for streamed in (0, 4):
        put(engine, in_pieces(forced(engine, streamed, 2, cfg)), monkeypatch, LateCopies())
        videos.append(engine.generate(PERSON, PROMPT, **OPTIONS))
    whole = expected[cfg]
    assert (videos[0].latents - whole).abs().max() < 1e-4
    assert torch.equal(videos[0].latents, videos[1].latents)
    assert videos[0].stats.modes["rows"] == f"feed-forward in {ROWS} pieces"


def test_the_last_rows_are_not_lost():
    """Tokens that the pieces do not divide evenly."""
    for graph in (graph for graph in graph_table(TINY, SHAPE).values() if graph.chunked):
        whole, pieces = (g.module().ff.to_empty(device="cpu") for g in (graph, in_ff_chunks(graph, ROWS)))
        generator = torch.Generator().manual_seed(1)
        for parameter in whole.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        pieces.load_state_dict(whole.state_dict())
        x = torch.randn(2, 4 * ROWS + 3, TINY.transformer.inner_dim, generator=generator)
        assert torch.allclose(whole(x), pieces(x), atol=1e-5)


def test_pieces_hold_less():
    """At full size the wide rows are what a block holds most of, once, and no more in pieces."""
    graph = graph_table(PREVIEW, PREVIEW_SHAPE)["block"]
    graphs = graph, in_ff_chunks(graph, ROWS)
    whole, pieces = (count(g, {"B": 1}, torch.bfloat16, True) for g in graphs)
    wide = 4 * PREVIEW.transformer.inner_dim * (PREVIEW_SHAPE.video_tokens + 226) * 2
    assert wide < whole.peak <= 2 * wide
    assert pieces.peak < 0.9 * whole.peak
    assert len({count_flops(g, {"B": 1}, torch.bfloat16) for g in graphs}) == 1


def test_three_gigabytes_are_enough():
    """The budget that the preview has to run in at any price; less, and the blocks go in pieces."""
    for machine in MACHINES.values():
        found = plan(3 * 10**9, sizes_of("preview"), machine, tiling=True)
        assert found.peak <= 3 * 10**9
        smaller = plan(27 * 10**8, sizes_of("preview"), machine, tiling=True)
        assert smaller.rows == ROWS
        assert f"{ROWS} row pieces" in str(smaller)


def test_engines_that_hold_their_weights_are_not_cut():
    found = sizes_of("preview", rows=False)
    assert all(stage.rows == () for stage in found.stages)
