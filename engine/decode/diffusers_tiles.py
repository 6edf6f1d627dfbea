"""Tiles as diffusers cuts and blends them after enable_tiling(), to compare with."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..errors import InputError
from ..runtime.executor import GraphExecutor
from ..shapes import VideoShape, spans
from .chunks import Convert, TileDecoder, any_size
from .tile import Tile

REFERENCE_OVERLAP = (1 / 6, 1 / 5)  # diffusers', of a tile's height and width


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


def tiled_reference(networks: GraphExecutor, latents: Tensor, tile: Tile, convert: Convert) -> Iterator[Tensor]:
    """Frames [n, H, W, 3] on the host, chunk by chunk, from latents [1, F, 16, h, w] as diffusers decodes them after
    enable_tiling().

    Where a sixth of a tile's height or a fifth of its width is no whole number of latent pixels, the frames have
    another size than they should: diffusers' have it too.
    """
    decode, ratio = TileDecoder(networks, latents), networks.variant.vae.spatial_ratio
    sizes = latents.shape[3], latents.shape[4]
    for span in spans(latents.shape[1]):
        yield _reference_tiles(partial(decode, span), sizes, tile, _made(tile, ratio), convert)


def encode_reference(networks: GraphExecutor, frame: Tensor, tile: Tile) -> Tensor:
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
