"""Latents to frames, a few latent frames at a time."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..runtime.executor import GraphExecutor
from ..shapes import spans
from ..video import to_uint8, to_unit
from .blended import tiled
from .chunks import Convert
from .diffusers_tiles import tiled_reference
from .exact import exact
from .tile import Tile, check_tile


def decode_chunks(networks: GraphExecutor, latents: Tensor) -> Iterator[Tensor]:
    """Frames [n, 3, H, W] in [-1, 1] on the device, in order, from latents [1, F, 16, h, w] (unscaled): the whole frame
    at once, by the engine's compiled graphs."""
    caches: tuple[Tensor, ...] = ()
    for begin, end in spans(latents.shape[1]):
        part = latents[:, begin:end].transpose(1, 2).contiguous()
        frames, *rest = networks.many("decode_next" if begin else "decode_first", part, *caches)
        caches = tuple(rest)
        yield frames[0].transpose(0, 1)


def whole(networks: GraphExecutor, latents: Tensor, tile: Tile, convert: Convert) -> Iterator[Tensor]:
    """Frames [n, H, W, 3] on the host; without tiles, whatever `tile` is."""
    return (convert(frames).cpu() for frames in decode_chunks(networks, latents))


Modes = Mapping[str, Callable[[GraphExecutor, Tensor, Tile, Convert], Iterator[Tensor]]]
"""The ways to decode; each yields chunks in order. `tile` is (height, width) in latent pixels."""

MODES: Modes = {
    "whole": whole,
    "tiled": tiled,
    "tiled-reference": tiled_reference,
    "exact": exact,
}


# How a chunk is converted on the device, and what becomes of the chunks: float frames keep the engine's dtype as "pt".
OUTPUT_TYPES: Mapping[str, tuple[Convert, Callable[[Iterator[Tensor]], Any]]] = {
    "uint8": (to_uint8, lambda chunks: torch.cat(list(chunks)).numpy()),
    "np": (to_unit, lambda chunks: torch.cat(list(chunks)).float().numpy()),
    "pt": (to_unit, lambda chunks: torch.cat(list(chunks)).permute(0, 3, 1, 2).contiguous()),
    "pil": (to_uint8, lambda chunks: [Image.fromarray(frame.numpy()) for chunk in chunks for frame in chunk]),
    "stream": (to_uint8, lambda chunks: (frame.numpy() for chunk in chunks for frame in chunk)),
}


@torch.no_grad()
def frames_in_order(
    networks: GraphExecutor, latents: Tensor, convert: Convert, mode: str | None = None, tile: Tile | None = None,
    modes: Modes = MODES,
) -> Iterator[Tensor]:  # fmt: skip
    """Frames [n, H, W, 3] on the host, in order, from latents [1, F, 16, h, w] (unscaled)."""
    frames = modes[mode or "whole"](networks, latents, check_tile(tile, networks.variant.vae), convert)
    while True:
        with networks.weights.scratch("decode"):
            chunk = next(frames, None)
        if chunk is None:
            return
        yield chunk


def finish(
    networks: GraphExecutor, latents: Tensor, output_type: str, mode: str | None = None, tile: Tile | None = None,
    modes: Modes = MODES,
) -> Any:  # fmt: skip
    """Frames of `output_type` from latents [b, F, 16, h, w] (unscaled), one entry per video; None for "latent".

    Videos are decoded one by one, and each chunk is converted and leaves the device as soon as it is decoded. "stream"
    gives iterators over frames uint8 [H, W, 3], and decodes as they are read.
    """
    if output_type == "latent":
        return None
    convert, join = OUTPUT_TYPES[output_type]
    return [join(frames_in_order(networks, video[None], convert, mode, tile, modes)) for video in latents]
