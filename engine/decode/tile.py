"""Tiles of a frame: where they lie, and what of each counts."""

from dataclasses import dataclass
from itertools import pairwise

from ..configs import VaeConfig
from ..errors import InputError

OVERLAP = 0.25  # of a tile; what two tiles share at least


LEAST = 4  # latent pixels; the side of the smallest tile


Tile = tuple[int, int]


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in latent pixels: [start, stop) is decoded, [begin, end) counts. Over the first `rise` of
    these it is faded in, over the last `fall` out."""

    start: int
    stop: int
    begin: int
    end: int
    rise: int
    fall: int


def cut(size: int, tile: int) -> list[Span]:
    """Tiles of one size along an axis, evenly spread, so that no tile is a sliver with statistics of its own."""
    if tile >= size:
        return [Span(0, size, 0, size, 0, 0)]
    shared = max(1, round(tile * OVERLAP))
    count = -(-(size - shared) // (tile - shared))
    starts = [i * (size - tile) // (count - 1) for i in range(count)]
    # Blended is all that two tiles share, as far as no third tile is met: the error of a mean of two is the least.
    fades = [(0, 0)]
    for left, right in pairwise(starts):
        common = left + tile - right
        width = min(common, max(shared, right - left))
        fades.append((right + (common - width) // 2, width))
    fades.append((size, 0))
    return [
        Span(start, start + tile, begin, end + fall, rise, fall)
        for start, ((begin, rise), (end, fall)) in zip(starts, pairwise(fades), strict=True)
    ]


def check_tile(tile: Tile | None, config: VaeConfig) -> Tile:
    """A tile's height and width in latent pixels; default half of the trained size, as diffusers has it.

    Raises:
        InputError: not two whole numbers of at least 4.
    """
    if tile is None:
        return config.sample_height // 2 // config.spatial_ratio, config.sample_width // 2 // config.spatial_ratio
    if not isinstance(tile, tuple | list) or [type(n) for n in tile] != [int, int] or min(tile) < LEAST:
        raise InputError(
            f"tile={tile!r} has to be (height, width) in latent pixels, whole numbers of at least {LEAST}."
        )
    return tile[0], tile[1]
