"""Overlapping tiles: ours for decoding, and diffusers' both ways for comparison.

A tile's GroupNorms see the tile only, so its tones differ a little from those of the whole frame; the overlap hides
the step. Time is the outer loop: frames come out in order, and memory does not grow with their number.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..runtime.executor import GraphExecutor
from ..shapes import spans
from .chunks import Convert, TileDecoder
from .tile import Span, Tile, cut


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


def tiled(
    networks: GraphExecutor, latents: Tensor, tile: Tile, convert: Convert, decoder: TileDecoder | None = None
) -> Iterator[Tensor]:
    """Frames [n, H, W, 3] on the host, chunk by chunk, from latents [1, F, 16, h, w] in overlapping tiles.

    On the device are one tile's features and caches, and the border that it shares with the tile beside it.

    Args:
        decoder: that decodes the tiles; None for one on this device.
    """
    decode, ratio = decoder or TileDecoder(networks, latents), networks.variant.vae.spatial_ratio
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
