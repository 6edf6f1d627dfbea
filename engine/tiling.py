"""Overlapping tiles: ours for decoding, and diffusers' both ways for comparison.

A tile's GroupNorms see the tile only, so its tones differ a little from those of the whole frame; the overlap hides
the step. Time is the outer loop: frames come out in order, and memory does not grow with their number.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from .chunks import Convert, TileDecoder, any_size, spans
from .errors import InputError
from .runtime import Networks
from .shapes import VideoShape
from .variants import VaeConfig

OVERLAP = 0.25  # of a tile; what two tiles share at least
LEAST = 4  # latent pixels; the side of the smallest tile
REFERENCE_OVERLAP = (1 / 6, 1 / 5)  # diffusers', of a tile's height and width
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


def _fade(span: Span, ratio: int, like: Tensor) -> Tensor:
    """The weight of every pixel of a tile; those of two tiles add up to one."""
    weight = like.new_ones((span.end - span.begin) * ratio)
    for count, backwards in ((span.rise * ratio, False), (span.fall * ratio, True)):
        ramp = (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / max(1, count)
        if backwards:
            weight[len(weight) - count :] *= ramp.flip(0)
        else:
            weight[:count] *= ramp
    return weight


def tiled(networks: Networks, latents: Tensor, tile: Tile, convert: Convert) -> Iterator[Tensor]:
    """Frames [n, H, W, 3] on the host, chunk by chunk, from latents [1, F, 16, h, w] in overlapping tiles.

    On the device are one tile's features and caches, and the border that it shares with the tile beside it.
    """
    decode, ratio = TileDecoder(networks, latents), networks.variant.vae.spatial_ratio
    rows, columns = cut(latents.shape[3], tile[0]), cut(latents.shape[4], tile[1])
    for span in spans(latents.shape[1]):
        out = None
        above: list[Tensor] = []
        for row in rows:
            beside, below = None, []
            for i, column in enumerate(columns):
                frames = decode(span, slice(row.start, row.stop), slice(column.start, column.stop))
                frames = frames[
                    ...,
                    (row.begin - row.start) * ratio : (row.end - row.start) * ratio,
                    (column.begin - column.start) * ratio : (column.end - column.start) * ratio,
                ].float()
                frames = frames * (_fade(row, ratio, frames)[:, None] * _fade(column, ratio, frames))
                if beside is not None:
                    frames[..., : beside.shape[-1]] += beside
                whole = frames.shape[-1] - column.fall * ratio
                beside = frames[..., whole:].clone() if column.fall else None
                done = frames[..., :whole]
                if above:
                    strip = decode.host.take(above[i])
                    done[..., : strip.shape[-2], :] += strip
                whole = done.shape[-2] - row.fall * ratio
                if row.fall:
                    below.append(decode.host.keep(done[..., whole:, :].contiguous()))
                block = convert(done[..., :whole, :])
                if out is None:
                    size = (len(block), latents.shape[3] * ratio, latents.shape[4] * ratio, 3)
                    out = decode.host.empty(size, block.dtype)
                y, x = row.begin * ratio, column.begin * ratio
                decode.host.put(out[:, y : y + block.shape[1], x : x + block.shape[2]], block)
            above = below
        assert out is not None
        yield out


def _blend(before: Tensor, tile: Tensor, extent: int, axis: int) -> None:
    """Fade `tile` in over the end of the tile before it, along an axis, in place."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    shape = [1] * tile.dim()
    shape[axis] = extent
    weight = (torch.arange(extent, device=tile.device) / extent).to(tile.dtype).reshape(shape)
    begin = tile.narrow(axis, 0, extent)
    begin.copy_(before.narrow(axis, before.shape[axis] - extent, extent) * (1 - weight) + begin * weight)


def _reference_tiles(
    part: Callable[[slice, slice], Tensor], sizes: Tile, tile: Tile, out: Tile, convert: Convert
) -> Tensor:
    """As diffusers after enable_tiling(): tiles at a fixed stride, the last ones as narrow as what is left, each faded
    in over the tiles above and beside it as these are after their own fading.

    Args:
        part: makes [n, c, h, w] of a tile, given by its rows and columns in what is cut.
        sizes, tile: of what is cut.
        out: height and width of a whole tile of what is made.
    """
    if all(size <= side for size, side in zip(sizes, tile, strict=True)):
        return convert(part(slice(0, sizes[0]), slice(0, sizes[1]))).cpu()
    strides = [int(side * (1 - share)) for side, share in zip(tile, REFERENCE_OVERLAP, strict=True)]
    extents = [int(side * share) for side, share in zip(out, REFERENCE_OVERLAP, strict=True)]
    limits = [side - extent for side, extent in zip(out, extents, strict=True)]
    lines: list[Tensor] = []
    above: list[Tensor] = []
    for y in range(0, sizes[0], strides[0]):
        line: list[Tensor] = []
        row: list[Tensor] = []
        for i, x in enumerate(range(0, sizes[1], strides[1])):
            made = part(slice(y, y + tile[0]), slice(x, x + tile[1]))
            if above:
                _blend(above[i], made, extents[0], 2)
            if row:
                _blend(row[-1], made, extents[1], 3)
            row.append(made)
            line.append(convert(made[:, :, : limits[0], : limits[1]]).cpu())
        above = row
        lines.append(torch.cat(line, dim=2))
    return torch.cat(lines, dim=1)


def check_reference(shape: VideoShape, tile: Tile, ratio: int) -> None:
    """Whether an image is encoded to a video's size in diffusers' tiles.

    Raises:
        InputError: it is not; diffusers itself ends with an error there.
    """
    found = []
    pixels = _made(tile, ratio)
    for size, side, share, whole in zip((shape.height, shape.width), pixels, REFERENCE_OVERLAP, tile, strict=True):
        limit = whole - int(whole * share)
        made = [min(size - start, side) // ratio for start in range(0, size, int(side * (1 - share)))]
        found.append(sum(min(each, limit) for each in made) if min(made) else 0)
    wanted = shape.latent_height, shape.latent_width
    if (shape.height > pixels[0] or shape.width > pixels[1]) and tuple(found) != wanted:
        raise InputError(
            f'decode="tiled-reference" with tile={tile}: diffusers would encode the image to {found[0]}x{found[1]} '
            f"latent pixels, and a video of {shape} has {wanted[0]}x{wanted[1]}; give a tile whose height is a "
            "multiple of 6 and whose width is one of 5."
        )


def _made(tile: Tile, ratio: int) -> Tile:
    return tile[0] * ratio, tile[1] * ratio


def tiled_reference(networks: Networks, latents: Tensor, tile: Tile, convert: Convert) -> Iterator[Tensor]:
    """Frames [n, H, W, 3] on the host, chunk by chunk, from latents [1, F, 16, h, w] as diffusers decodes them after
    enable_tiling().

    Where a sixth of a tile's height or a fifth of its width is no whole number of latent pixels, the frames have
    another size than they should: diffusers' have it too.
    """
    decode, ratio = TileDecoder(networks, latents), networks.variant.vae.spatial_ratio
    sizes = latents.shape[3], latents.shape[4]
    for span in spans(latents.shape[1]):
        yield _reference_tiles(partial(decode, span), sizes, tile, _made(tile, ratio), convert)


def encode_reference(networks: Networks, frame: Tensor, tile: Tile) -> Tensor:
    """Moments [1, 2 * 16, 1, h, w] of a frame [1, 3, 1, H, W] as diffusers encodes it after enable_tiling().

    Args:
        tile: (height, width) in latent pixels, as for decoding.
    """
    ratio, encoder = networks.variant.vae.spatial_ratio, any_size(networks)

    def part(rows: slice, columns: slice) -> Tensor:
        return encoder.one("vae_encode", frame[..., rows, columns].contiguous())[:, :, 0]

    sizes = frame.shape[3], frame.shape[4]
    moments = _reference_tiles(part, sizes, _made(tile, ratio), tile, lambda x: x.permute(0, 2, 3, 1))
    return moments.permute(0, 3, 1, 2)[:, :, None].to(frame.device)
