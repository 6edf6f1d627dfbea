"""Which engines are loaded and what of them streams, as a plan has it; engines are stood for by what they are asked."""

import pytest
import torch

from consisid.engine.checkpoint.reading import Checkpoint
from consisid.engine.graphs.graph import STAGES
from consisid.engine.graphs.grouped import grouped_table
from consisid.engine.graphs.spread import spread_groups
from consisid.engine.graphs.table import graph_table
from consisid.engine.lora.weights import Lora
from consisid.engine.memory import planner as memory
from consisid.engine.memory.costs import video_costs
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, TINY
from consisid.engine.weights.baked import BakedWeights, resident_share
from consisid.engine.weights.copy_stream import copy_stream_of

CPU = torch.device("cpu")


class Engine:
    def __init__(self, streamable):
        self.streamable, self.budget, self.closed = streamable, None, 0

    def limit(self, budget):
        self.budget = budget

    def close(self):
        self.closed += 1

    def refit(self, weights):
        self.weights = weights


@pytest.mark.parametrize("variant", [TINY, PREVIEW])
def test_every_graph_has_a_stage(variant):
    shape = VideoShape.of(variant, None, None, None)
    for graph in [*grouped_table(variant, shape).values(), *graph_table(variant, shape).values()]:
        assert graph.stage in STAGES


def plan(fraction):
    found = video_costs(TINY, VideoShape.of(TINY, None, None, None), torch.float32)
    least = memory.smallest(found, memory.UNKNOWN, None, False)[1]
    largest = memory.plan(None, found).peak
    return memory.plan(least + int(fraction * (largest - least)), found)


def weights_of(found):
    weights = BakedWeights(None, CPU, torch.float32, copy_stream_of(CPU))
    for graph in grouped_table(TINY, VideoShape.of(TINY, None, None, None), 2).values():
        weights.bind(graph, [])
    for name, size in {"trunk_0": 300, "trunk_1": 100, "text_layers_0": 50}.items():
        weights.hold(name, Engine(size))
    weights.use(found)
    return weights


def test_a_budget_goes_to_the_engines_of_a_stage():
    found = plan(0.0)
    assert not found.held
    weights = weights_of(found)
    assert weights.acquire("text_layers_0", 0) == ()
    weights.acquire("trunk_0", 0)
    weights.acquire("trunk_1", 0)
    engines = weights.engines
    assert engines["text_layers_0"].closed == 1  # its stage is over
    assert engines["trunk_0"].closed == 0
    share = resident_share(found, "denoise")
    assert 0 < share <= 1
    assert engines["trunk_0"].budget == int(share * 400) * 300 // 400
    assert engines["trunk_1"].budget == int(share * 400) * 100 // 400


def test_without_a_plan_nothing_is_limited():
    weights = weights_of(None)
    weights.acquire("text_layers_0", 0)
    weights.acquire("trunk_0", 0)
    assert all(engine.budget is None and not engine.closed for engine in weights.engines.values())


def test_a_lora_refits_the_engines_that_hold_what_it_changes(tiny_checkpoint):
    """Always from the checkpoint's weights, stacked as the engine has them, and back to these."""
    checkpoint, to_k = Checkpoint(tiny_checkpoint), "transformer_blocks.3.attn1.to_k"
    table = grouped_table(TINY, VideoShape.of(TINY, None, None, None), 3)
    weights = BakedWeights(checkpoint, CPU, torch.float32, copy_stream_of(CPU))
    for name, graph in table.items():
        weights.bind(graph, [])
        weights.hold(name, Engine(0))
    down, up = torch.randn(2, 192), torch.randn(192, 2)
    state = {f"transformer.{to_k}.lora_A.weight": down, f"transformer.{to_k}.lora_B.weight": up}
    loras = [Lora.read(state, checkpoint), Lora.read(state, checkpoint)]
    parts = [
        checkpoint.tensor("transformer", f"transformer_blocks.3.attn1.{part}.weight")
        for part in ("to_q", "to_k", "to_v")
    ]
    for count, active in enumerate((((loras[0], 0.5),), ((loras[0], 1.0), (loras[1], 1.0)), ())):
        weights.set_loras(active)
        given = {name: engine.weights for name, engine in weights.engines.items() if hasattr(engine, "weights")}
        assert list(given) == ["trunk_1"]
        found = given["trunk_1"]
        if active:  # stacked as the engine has them; without a LoRA the engine is as it was built
            weight = sum(weight for _, weight in active)
            right = torch.cat([parts[0], parts[1] + weight * up @ down, parts[2]])
            torch.testing.assert_close(found, {"transformer_blocks.3.attn1.to_qkv.weight": right})
        else:
            assert found == {}
        assert weights.version == count + 1


def test_an_engine_that_comes_later_has_the_lora_too(tiny_checkpoint):
    """As those for a share of the tokens, which are loaded when the loop begins."""
    checkpoint, to_out = Checkpoint(tiny_checkpoint), "transformer_blocks.1.attn1.to_out.0"
    weights = BakedWeights(checkpoint, CPU, torch.float32, copy_stream_of(CPU))
    down, up = torch.randn(2, 192), torch.randn(192, 2)
    state = {f"transformer.{to_out}.lora_A.weight": down, f"transformer.{to_out}.lora_B.weight": up}
    weights.set_loras(((Lora.read(state, checkpoint), 1.0),))
    for name, graph in spread_groups(TINY, VideoShape.of(TINY, None, None, None), 2).items():
        weights.bind(graph, [])
        weights.hold(name, Engine(0))
    given = {name: engine.weights for name, engine in weights.engines.items() if hasattr(engine, "weights")}
    right = checkpoint.tensor("transformer", f"{to_out}.weight") + up @ down
    assert list(given) == ["between_2"]  # of which the second block's attention is the beginning
    torch.testing.assert_close(given["between_2"], {f"{to_out}.weight": right})
