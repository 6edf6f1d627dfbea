"""Tokens on several devices by graphs that hold their weights: all that lies between two joint attentions is one graph.

PyTorch runs them here, in a thread for each device; what TensorRT makes of them is in tests/backends.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from queue import Queue
from threading import Thread
from types import SimpleNamespace
from zlib import crc32

import pytest
import torch

from consisid.engine.backends import backend
from consisid.engine.errors import EngineError
from consisid.engine.graphs.graph import weight_shapes
from consisid.engine.graphs.grouped import grouped_table
from consisid.engine.graphs.spread import spread_groups
from consisid.engine.graphs.table import graph_table
from consisid.engine.graphs.trunk import in_turn
from consisid.engine.parallel.devices import OnDevices, check_graphs
from consisid.engine.parallel.exchange import Exchange
from consisid.engine.parallel.mesh import Mesh
from consisid.engine.parallel.trunk import SpreadTrunk, take, trunk_of
from consisid.engine.runtime.executor import Held, executor
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import TINY, TINY_1_5
from consisid.engine.weights.baked import BakedWeights
from consisid.engine.weights.copy_stream import copy_stream_of

CPU = torch.device("cpu")


@dataclass
class Wires(Exchange):
    """Devices of one process: a queue from each to each."""

    queues: dict = field(default_factory=dict)

    @contextmanager
    def swapping(self, what, gives=(), takes=(), beside=False):
        for tensor, rank in gives:
            self.queues[self.rank, rank].put(tensor.clone())
        yield
        for place, rank in takes:
            place.copy_(self.queues[rank, self.rank].get(timeout=60))


def weights(graph, layer=0):
    """Of a graph, drawn by the names that the checkpoint has for them."""
    found = []
    for name, shape in weight_shapes(graph.module()).items():
        sources = graph.sources(name, layer)
        piece = (shape[0] // len(sources), *shape[1:])
        draws = [torch.Generator().manual_seed(crc32(source.encode())) for source in sources]
        found.append(torch.cat([0.1 * torch.randn(piece, generator=draw) for draw in draws]))
    return found


def running(variant, table):
    names = {name: list(weight_shapes(graph.module())) for name, graph in table.items()}
    runners = {name: backend("eager").load(graph, None, CPU, names[name]) for name, graph in table.items()}
    held = Held({name: [weights(graph, layer) for layer in range(len(graph.layers))] for name, graph in table.items()})
    return executor(variant, runners, held, CPU, torch.float32)


@pytest.mark.parametrize("mesh", ["ring=2", "ulysses=3"])
@pytest.mark.parametrize("variant", [TINY, TINY_1_5], ids=lambda variant: variant.name)
def test_the_blocks_of_all_devices_are_those_of_one(variant, mesh):
    t, shape = variant.transformer, VideoShape.of(variant, None, None, None)
    mesh = Mesh.parse(mesh, t.num_attention_heads)
    blocks = {name: graph for name, graph in graph_table(variant, shape).items() if graph.stage == "denoise"}
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, t.max_text_seq_length + shape.video_tokens, t.inner_dim, generator=draw)
    modulation = 0.1 * torch.randn(t.num_layers, 2, 2, 3, t.inner_dim, generator=draw)
    like = blocks["block"].inputs["cos"].shape
    cos, sin = (torch.randn(like, generator=draw) for _ in range(2))
    face = blocks["face"].inputs["keys"].shape if "face" in blocks else blocks["last_face"].inputs["keys"].shape
    keys, values = ([torch.randn(face, generator=draw) for _ in range(t.num_cross_attn)] for _ in range(2))
    one = running(variant, blocks)
    (expected,) = in_turn([one.trunk([hidden], modulation, cos, sin, keys, values)])

    table, queues = spread_groups(variant, shape, mesh.sequence), {}
    for pair in ((i, j) for i in range(mesh.size) for j in range(mesh.size)):
        queues[pair] = Queue()
    devices, found = [running(variant, table) for _ in range(mesh.size)], {}

    def work(rank):
        networks = devices[rank]
        exchange = Wires(rank, mesh.size, CPU, timedelta(1), queues=queues)
        trunk = SpreadTrunk(networks, shape, exchange, mesh, 1, lambda graph, like: networks.runners[like], True)
        own = take(hidden, trunk.share)
        out = trunk.run(own, modulation, *trunk.positions(cos, sin), keys, values)
        found[rank] = trunk.share, trunk.real(out, video=True)[0]

    threads = [Thread(target=work, args=(rank,), daemon=True) for rank in range(mesh.size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == mesh.size
    for share, video in found.values():
        assert (video - expected[:, slice(*share.video)]).abs().max() < 1e-4 * expected.abs().max()


def test_each_graph_has_the_weights_that_it_reads():
    """Between them all of the blocks', each once."""
    shape = VideoShape.of(TINY, None, None, None)
    found = [
        source
        for graph in spread_groups(TINY, shape, 2).values()
        for name in weight_shapes(graph.module())
        for source in graph.sources(name, 0)
    ]
    table = graph_table(TINY, shape)
    wanted = {
        source
        for name in ("block", "last_block", "face", "last_face")
        if name in table
        for weight in weight_shapes(table[name].module())
        for layer in range(len(table[name].layers))
        for source in table[name].sources(weight, layer)
    }
    assert sorted(found) == sorted(wanted)


def folder_of(sequence):
    """What is asked of the manifest of a folder whose engines hold their weights, for so many devices."""
    spec = SimpleNamespace(layers_per_shard=3, sequence=sequence, variant=TINY)
    return SimpleNamespace(spec=spec, graphs={})


def test_engines_for_another_number_of_devices_are_refused():
    place, heads = Path("engine"), TINY.transformer.num_attention_heads
    for mesh, built in (("cfg=2", 1), ("cfg=2", 2), ("ring=2", 2), ("cfg=2,ulysses=3", 3)):
        check_graphs(folder_of(built), place, Mesh.parse(mesh, heads))
    for mesh, built, needed in (("ring=2", 1, 2), ("ulysses=3,ring=2", 3, 6)):
        with pytest.raises(EngineError, match=rf"over {needed}; build it with --sequence {needed}, or"):
            check_graphs(folder_of(built), place, Mesh.parse(mesh, heads))


def test_each_device_has_the_engines_of_its_share_alone():
    """A budget is divided over these, and those for all tokens are not even loaded."""
    shape, mesh = VideoShape.of(TINY, None, None, None), Mesh.parse("ring=2", 3)
    table = spread_groups(TINY, shape, 2)
    manifest = folder_of(2)
    manifest.graphs = {name: SimpleNamespace(backend="eager", file=None, weights=[]) for name in table}
    store = BakedWeights(SimpleNamespace(), CPU, torch.float32, copy_stream_of(CPU))
    engine = SimpleNamespace(manifest=manifest, weights=store, device=CPU, folder=Path(), mesh=mesh)
    networks = executor(TINY, {}, store, CPU, torch.float32, 3)
    trunk = trunk_of(engine, networks, shape, Wires(1, 2, CPU, timedelta(1)), mesh, 1, {})
    assert trunk.holds
    assert set(store.engines) == set(table)
    assert {store._stage_of(name) for name in table} == {"denoise"}

    class Loaded(OnDevices):
        def __init__(self):
            self.manifest, self.mesh, self.checkpoint = manifest, mesh, SimpleNamespace(has_part=lambda part: True)

    graphs = grouped_table(TINY, shape, 3)
    assert {name for name, graph in graphs.items() if not Loaded().wants(graph)} == {"trunk_0", "trunk_1"}
