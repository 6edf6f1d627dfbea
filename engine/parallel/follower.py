"""The process of another device: does what rank 0 orders until it ends."""

import os
import pickle
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..decode.chunks import Convert, TileDecoder
from ..decode.tile import Tile
from ..errors import ConsisIDError, one_line
from ..graphs.graph import Graph
from ..manifest import Manifest
from ..memory.plans import MemoryPlan
from ..run.holder import Holder
from ..shapes import VideoShape
from ..util.device import check_device, current
from .crew import FOREVER, Pulse, processors, second, switch
from .decode import SlabDecoder, dealt, slabs_of
from .devices import OnDevices
from .exchange import Exchange, join
from .mesh import Mesh
from .trunk import SpreadTrunk, trunk_of

STAGES = ("denoise", "decode")
BEGINNING = timedelta(minutes=10)  # in which rank 0 has to be found, and to open an engine


class PartEngine(OnDevices):
    """An engine's graphs that run on every device."""

    def wants(self, graph: Graph) -> bool:
        return graph.stage in STAGES and super().wants(graph)


class Follower:
    """One of the others. Its methods are orders.

    Attributes:
        holder: what the weights of this device are prepared for.
    """

    def __init__(self, engine: PartEngine, exchange: Exchange, mesh: Mesh):
        self.engine, self.exchange, self.mesh = engine, exchange, mesh
        self.holder = Holder(engine)
        self.known: dict[int, list[Tensor]] = {}
        self.decoders: dict[int, SlabDecoder | TileDecoder] = {}
        self.spread: SpreadTrunk | None = None

    def begin(self, shape: tuple[int, int, int], plan: MemoryPlan | None, loras: int, stage: str) -> None:
        """A run begins, or goes on under another plan.

        Args:
            shape: height, width and frames.
            loras: bytes in which they come, 0 where they are those of before.
            stage: what weights are brought for.
        """
        engine, before = self.engine, self.holder.loras
        self.holder = Holder(engine)
        self.holder.loras = before
        self.holder.plan, self.holder.stage_name = plan, "denoise"  # which has the LoRAs, whatever comes next
        if loras:
            packed = torch.empty(loras, dtype=torch.uint8, device=engine.device)
            self.exchange.share("loras", [packed])
            self.holder.loras = pickle.loads(packed.cpu().numpy().tobytes())
        self.holder.enter()
        engine.weights.enter(stage)
        found = VideoShape.of(engine.variant, *shape, any_frames=True)
        rows, networks = 1 if plan is None else plan.rows, engine.networks(found)
        if rows > 1 and self.mesh.sequence == 1:
            networks = engine.in_ff_chunks(networks, found, rows)
        self.networks = engine.networks(found)
        self.spread = trunk_of(engine, networks, found, self.exchange, self.mesh, rows, engine.spread_runners)

    def rest(self) -> None:
        """Nobody computes now; streams that have begun go on later."""
        self.engine.give_back()

    def learn(self, number: int, shapes: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> None:
        """Positions, keys and values, for calls that name the number."""
        made = [torch.empty(shape, dtype=dtype, device=self.engine.device) for shape, dtype in shapes]
        self.exchange.share("known", made)
        assert self.spread is not None
        self.known[number] = [*self.spread.positions(*made[:2]), *made[2:]]

    def forget(self, number: int) -> None:
        """Nobody will name the number again."""
        self.known.pop(number, None)
        self.decoders.pop(number, None)

    def trunk(self, size: int, count: int, number: int, begun: bool, passes: int, dtype: torch.dtype) -> None:
        """The blocks, on this device's tokens of `size` of `count` samples."""
        weights, trunk = self.engine.weights, self.spread
        assert trunk is not None
        if self._idle(size, count):
            self._pass_by(begun=begun)
            return
        weights.expect("denoise", passes)
        with weights.scratch("denoise"):
            layers = self.engine.variant.transformer.num_layers
            hidden, modulation = self._taken(size, layers, dtype)
            cos, sin, *faces = self.known[number]
            half = len(faces) // 2
            tokens = trunk.run(hidden, modulation, cos, sin, faces[:half], faces[half:], begun)
            del hidden
            self.exchange.swap("gather", [(x.contiguous(), 0) for x in trunk.real(tokens, video=True)])

    def block(self, size: int, count: int, number: int, dtype: torch.dtype) -> None:
        """The first block, on this device's tokens."""
        weights, trunk = self.engine.weights, self.spread
        assert trunk is not None
        if self._idle(size, count):
            self._pass_by(first=True)
            return
        with weights.scratch("denoise"):
            hidden, modulation = self._taken(size, 0, dtype)
            hidden = trunk.block(hidden, modulation, *self.known[number][:2])
            self.exchange.swap("gather", [(x.contiguous(), 0) for x in trunk.real(hidden, video=False)])

    def slab(
        self, number: int, shape: tuple[int, ...], dtype: torch.dtype, first: bool, last: bool, tile: Tile | None,
        convert: Convert,
    ) -> None:  # fmt: skip
        """This device's rows of the frames of a chunk of latents."""
        latents = torch.empty(shape, dtype=dtype, device=self.engine.device)
        self.exchange.share("latents", [latents])
        size, rank = (shape[3], shape[4]), self.exchange.rank
        if rank >= len(slabs_of(size, self.exchange.size)):
            return
        if first:
            self.decoders[number] = SlabDecoder(self.networks, self.exchange, size, tile)
        run = self.decoders[number]
        assert isinstance(run, SlabDecoder)
        with self.engine.weights.scratch("decode"):
            frames = run.decode(latents, last, convert)
            self.exchange.swap("frames", [(frames.to(self.engine.device), 0)])

    def tiles(
        self, number: int, span: tuple[int, int], tile: Tile, shape: tuple[int, ...], dtype: torch.dtype, first: bool
    ) -> None:
        """This device's tiles of a chunk."""
        if first:
            latents = torch.empty(shape, dtype=dtype, device=self.engine.device)
            self.exchange.share("latents", [latents])
            self.decoders[number] = TileDecoder(self.networks, latents)
        run = self.decoders[number]
        assert isinstance(run, TileDecoder)
        for rows, columns in dealt(tile, shape, self.exchange.rank, self.exchange.size):
            with self.engine.weights.scratch("decode"):
                self.exchange.swap("tile", [(run(span, rows, columns).contiguous(), 0)])

    def _idle(self, size: int, count: int) -> bool:
        return self.mesh.coordinates(self.exchange.rank)[0] * size >= count

    def _pass_by(self, **what: bool) -> None:
        """Nothing is computed here, which others wait for only where they have weights from here."""
        plan = self.holder.plan
        if plan is not None and plan.stage("denoise").holders > 1:
            assert self.spread is not None
            self.spread.pass_by(**what)

    def _taken(self, size: int, layers: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """This device's hidden state [B, s, C] and the modulation, of all layers or of one."""
        assert self.spread is not None
        config, device = self.engine.variant.transformer, self.engine.device
        hidden = torch.empty(size, self.spread.share.rows, config.inner_dim, dtype=dtype, device=device)
        rows = (layers,) if layers else ()
        modulation = torch.empty(*rows, 2, 2, 3, config.inner_dim, dtype=dtype, device=device)
        self.exchange.swap("scatter", takes=[(hidden, 0), (modulation, 0)])
        return hidden, modulation


def opened(place: dict[str, Any], device: torch.device) -> PartEngine:
    """The engine folder that rank 0 opens, on this device."""
    folder = Path(place["folder"])
    manifest = Manifest.read(folder)
    manifest.verify(folder, device)
    return PartEngine(folder, manifest, device, place["memory"], mesh=place["mesh"])


def work(store: dist.Store, rank: int, size: int, began: Callable[[Exchange], None]) -> None:
    """Until rank 0 orders the end."""
    place = pickle.loads(store.get("open"))  # from rank 0, which started this
    mesh, timeout = place["mesh"], timedelta(seconds=place["timeout"])
    name = place["devices"][rank] if place["devices"] else place["kind"]
    if name == "cuda":
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = check_device(name)
    exchange = Exchange(rank, size, device, timeout, place["transport"])
    began(exchange)
    switch(place["switches"])
    pulse = Pulse(second(), exchange)
    with current(device), torch.no_grad(), processors(rank, size, device):
        engine = opened(place, device)
        store.set(f"ready/{rank}", engine.manifest.spec.key)
        store.wait(["go"], FOREVER)
        join(store, exchange)
        engine.weights.others = exchange
        follower = Follower(engine, exchange, mesh)
        while True:
            order, values = pickle.loads(store.get(f"order/{pulse.heard}"))
            pulse.heard += 1
            if order == "end":
                return
            getattr(follower, order)(**values)


def main() -> int:
    """Rank, number of ranks and the place of the store are torch.distributed's environment variables."""
    store, rank, size = next(dist.rendezvous("env://", timeout=BEGINNING))
    exchanges: list[Exchange] = []
    try:
        work(store, rank, size, exchanges.append)
    except BaseException as error:  # whatever it is, rank 0 says it
        said = str(error) if isinstance(error, ConsisIDError) else f"{type(error).__name__}: {error}"
        waited = isinstance(error, RuntimeError) and any(each.doing is not None for each in exchanges)
        with suppress(RuntimeError):  # rank 0 may be gone
            store.set(f"left/{rank}" if waited else f"failed/{rank}", one_line(said))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
