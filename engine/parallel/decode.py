"""Frames from all devices: rows of the whole frame, exact, or tiles, dealt out."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from ..decode.blended import tiled
from ..decode.chunks import Convert, Host, TileDecoder
from ..decode.exact import ExactDecoder, Map
from ..decode.tile import Tile, cut
from ..runtime.executor import GraphExecutor
from ..shapes import spans
from .exchange import Exchange
from .mesh import cut as even
from .team import Team


class Kept(Host):
    """Maps that stay on the device."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def take(self, place: Tensor) -> Tensor:
        return place


class SlabDecoder(ExactDecoder):
    """The exact decoder on the rows of one device.

    After each step the devices beside it give the row of features that lies next to its own, and all devices the
    moments of theirs, which are added in the order of ranks: the GroupNorms are those of the whole frame, and the same
    everywhere. Of every map, C * F * W numbers go from each device to each neighbour, and 16 bytes of each group to
    every other.

    Args:
        size: height and width of the latents.
        tile: within the rows of the device, with maps on the host; None for all rows at once, on the device.
    """

    def __init__(self, networks: GraphExecutor, exchange: Exchange, size: Tile, tile: Tile | None):
        self.exchange, self.cuts = exchange, slabs_of(size, exchange.size)
        host = Kept(exchange.device) if tile is None else Host(exchange.device)
        rows = self.cuts[exchange.rank]
        super().__init__(networks, host, size, tile or (rows[1] - rows[0], size[1]), rows)

    def meet(self, features: Map) -> None:
        rank, count, (begin, end) = self.exchange.rank, len(self.cuts), (row * features.scale for row in self.rows)
        edges = {rank - 1: (begin, begin - 1), rank + 1: (end - 1, end)}
        gives, takes = [], []
        for other, (inner, outer) in edges.items():
            if 0 <= other < count:
                row = self.host.take(features.part(slice(inner, inner + 1), slice(None)).contiguous())
                gives.append((row, other))
                takes.append((torch.empty_like(row), other, outer))
        self.exchange.swap("halo", gives, [(row, other) for row, other, _ in takes])
        for row, _, outer in takes:
            self.host.put(features.part(slice(outer, outer + 1), slice(None)), row)
        own = torch.stack([torch.as_tensor(x) for x in (features.moments.mean, features.moments.square)])
        others = [r for r in range(count) if r != rank]
        found = {r: torch.empty_like(own) for r in others} | {rank: own}
        self.exchange.swap("moments", [(own, r) for r in others], [(found[r], r) for r in others])
        values = features.moments.count // (end - begin)
        features.moments.clear()
        for r, (first, last) in enumerate(self.cuts):
            features.moments.join(values * (last - first) * features.scale, *found[r].unbind(0))


def slabs_of(size: Tile, devices: int) -> list[tuple[int, int]]:
    """Rows of latents by rank; devices that are more than rows have none."""
    return even(size[0], min(devices, size[0]))


def slabs(
    team: Team, begin: Callable[[], None], within: bool, networks: GraphExecutor, latents: Tensor, tile: Tile,
    convert: Convert,
) -> Iterator[Tensor]:  # fmt: skip
    """Frames [n, H, W, 3] on the host, chunk by chunk, from latents [1, F, 16, h, w]; see SlabDecoder.

    Args:
        begin: tells the others whose run it is.
        within: the rows of a device are cut into tiles.
    """
    size, count, ratio = (latents.shape[3], latents.shape[4]), latents.shape[1], networks.variant.vae.spatial_ratio
    cuts = tile if within else None
    run = SlabDecoder(networks, team.exchange, size, cuts)
    for first, last in spans(count):
        part = latents[:, first:last].transpose(1, 2).contiguous()
        begin()
        with team.together():
            team.order(
                "slab", number=team.number(run), shape=tuple(part.shape), dtype=part.dtype, first=first == 0,
                last=last == count, tile=cuts, convert=convert,
            )  # fmt: skip
            team.exchange.share("latents", [part])
            own = run.decode(part, last == count, convert)
            frames = torch.empty((len(own), size[0] * ratio, *own.shape[2:]), dtype=own.dtype)
            places = [frames[:, top * ratio : bottom * ratio] for top, bottom in run.cuts]
            places[0].copy_(own)
            takes = [
                (torch.empty(place.shape, dtype=own.dtype, device=team.exchange.device), rank)
                for rank, place in enumerate(places)
                if rank
            ]
            team.exchange.swap("frames", takes=takes)
            while takes:
                came, rank = takes.pop()
                places[rank].copy_(came)
            del part, own, came  # nothing lies in scratch memory between two chunks: it would be left in pieces
        yield frames


def dealt(tile: Tile, latents: Sequence[int], rank: int, devices: int) -> list[tuple[slice, slice]]:
    """The tiles of a rank, rows and columns of latents [1, F, 16, h, w]: every so many of those that `tiled` decodes,
    in its order."""
    every = product(cut(latents[3], tile[0]), cut(latents[4], tile[1]))
    found = [(slice(y.start, y.stop), slice(x.start, x.stop)) for y, x in every]
    return found[rank::devices]


class DealtTiles(TileDecoder):
    """Decodes every so many of the tiles of a chunk here, and gets the others from the devices that decode them."""

    def __init__(
        self, team: Team, begin: Callable[[], None], networks: GraphExecutor, latents: Tensor, tile: Tile
    ):  # fmt: skip
        super().__init__(networks, latents)
        self.team, self.begin, self.tile = team, begin, tile
        self._tiles: deque[Tensor] = deque()

    def __call__(self, span: tuple[int, int], rows: slice, columns: slice) -> Tensor:
        if (rows.start, columns.start) == (0, 0):
            self._deal(span)
        return self.host.take(self._tiles.popleft())

    def _deal(self, span: tuple[int, int]) -> None:
        """All tiles of a chunk, in their order, on the host: none is owed when anything else happens."""
        self._tiles.clear()
        team, ratio, shape, first = self.team, self.networks.variant.vae.spatial_ratio, self.latents.shape, span[0] == 0
        self.begin()
        with team.together():
            number, dtype = team.number(self), self.latents.dtype
            team.order("tiles", number=number, span=span, tile=self.tile, shape=tuple(shape), dtype=dtype, first=first)
            if first:
                team.exchange.share("latents", [self.latents.contiguous()])
            count = 0
            for index, (rows, columns) in enumerate(dealt(self.tile, shape, 0, 1)):
                rank = index % team.mesh.size
                if rank == 0:
                    frames = super().__call__(span, rows, columns)
                    count = len(frames)
                else:
                    height, width = ((part.stop - part.start) * ratio for part in (rows, columns))
                    frames = self.latents.new_empty((count, 3, height, width))
                    team.exchange.swap("tile", takes=[(frames, rank)])
                self._tiles.append(self.host.keep(frames.contiguous()))


def dealt_tiles(
    team: Team, begin: Callable[[], None], networks: GraphExecutor, latents: Tensor, tile: Tile, convert: Convert
) -> Iterator[Tensor]:  # fmt: skip
    """As decode.blended.tiled, with the tiles of all devices."""
    return tiled(networks, latents, tile, convert, DealtTiles(team, begin, networks, latents, tile))
