"""The VAE decoder: its convolutions in two memory formats, and whole decodes, chunk by chunk and untiled."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from consisid.engine.decode.frames import decode_chunks
from consisid.engine.runtime.executor import GraphExecutor, Held, PerLayer

from ..core.flops import decode_flops
from ..core.reference import vae as reference_vae
from .cases import Case, Context, Work

FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}


def convolution(c: Context, channels: int, frames: int, height: int, width: int, layout: str) -> Work:
    """[1, channels, frames + 2, height, width], kernel 3 x 3 x 3, as in a chunk at one level of the decoder."""
    x = c.randn(1, channels, frames + 2, height, width)
    weight = c.randn(channels, channels, 3, 3, 3, seed=1) * (27 * channels) ** -0.5
    bias = c.randn(channels, seed=2)
    x, weight = (y.contiguous(memory_format=FORMATS[layout]) for y in (x, weight))

    def run() -> Tensor:
        return F.conv3d(x, weight, bias, padding=(0, 1, 1))

    corner = x[..., :18, :18].float().contiguous()
    right = F.conv3d(corner, weight.float().contiguous(), bias.float(), padding=(0, 1, 1))[..., :17, :17]
    return Work(run, c.compare(run()[..., :17, :17], right), c.tolerance, "checked against float32 in a corner")


def decoder(c: Context, layout: str = "contiguous") -> GraphExecutor:
    """The decoder with its five-dimensional weights and the first input of its graphs in a memory format; activations
    follow them."""
    made: GraphExecutor = c.once("decoder", lambda: c.weights.networks(["decode_first", "decode_next"]))
    if layout == "contiguous":
        return made

    def laid(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=FORMATS[layout]) if x.dim() == 5 else x

    def under(run: Any) -> Any:
        return lambda inputs, weights: run((laid(inputs[0]), *inputs[1:]), weights)

    assert isinstance(made.weights, Held)
    weights: Any = {name: [tuple(map(laid, tensors)) for tensors in layers] for name, layers in made.weights.items()}
    runners = {name: under(run) for name, run in made.runners.items()}
    return PerLayer(made.variant, runners, Held(weights), made.device, made.dtype)


def latents_of(c: Context) -> Tensor:
    s = c.shape
    return c.randn(1, s.latent_frames, c.variant.vae.latent_channels, s.latent_height, s.latent_width, seed=20)


def frames_of(networks: GraphExecutor, latents: Tensor) -> Tensor:
    """A whole video as diffusers returns one, [1, 3, F, H, W]."""
    return torch.cat(list(decode_chunks(networks, latents)))[None].transpose(1, 2)


def small(c: Context) -> Context:
    """The same decoder for a small video."""
    ratio, frames = c.variant.vae.spatial_ratio, min(5, c.shape.latent_frames)
    shape = replace(
        c.shape, height=4 * ratio, width=6 * ratio, num_frames=4 * frames - 3, latent_frames=frames, latent_height=4,
        latent_width=6, rows=2, columns=3,
    )  # fmt: skip
    return replace(c, shape=shape, _made={})


def ours(c: Context, layout: str) -> Work:
    """A whole decode, chunk by chunk; chunks are kept, as a caller would."""
    networks, latents = decoder(c, layout), latents_of(c)

    def run() -> list[Tensor]:
        return list(decode_chunks(networks, latents))

    if layout == "contiguous":
        return Work(run, note="compared with diffusers in its row")
    error = c.compare(frames_of(networks, latents), frames_of(decoder(c), latents))
    return Work(run, error, c.tolerance, "the error is between both formats")


def theirs(c: Context, tiled: bool) -> Work:
    """diffusers' own decode, whole or tiled."""
    model: Any = c.once("theirs", lambda: reference_vae(c.weights))
    latents = latents_of(c)

    def run() -> Tensor:
        (model.enable_tiling if tiled else model.disable_tiling)()
        frames: Tensor = model.decode(latents.transpose(1, 2), return_dict=False)[0]
        return frames

    if tiled or c.device.type == "meta":
        return Work(run, note="tiling changes the picture: no error is stated")
    error = c.compare(frames_of(decoder(c), latents), run())
    return Work(run, error, c.tolerance, "the error is between ours and theirs, at the full shape")


def cases(c: Context) -> Iterator[Case]:
    if c.device.type == "cpu":  # where the phase is only proven: a small video takes a tenth of the time
        c = small(c)
    channels, s = c.variant.vae.block_out_channels, c.shape
    levels = [(channels[0], s.height, s.width)]
    levels += [(channels[-2], s.height // 2, s.width // 2)] if len(channels) > 1 else []
    for width, rows, columns in levels:
        voxels = 8.0 * rows * columns
        for layout in FORMATS:
            name, make = f"conv3d {width} channels, 8 x {rows} x {columns}, {layout}", partial(convolution, c, width)
            moved = 2 * width * c.dtype.itemsize * voxels
            yield Case(name, partial(make, 8, rows, columns, layout), 54 * width**2 * voxels, moved)
    total = decode_flops(c.variant, s)
    for layout in FORMATS:
        yield Case(f"decode {s}, {layout}", partial(ours, c, layout), total, repeats=5)
    for name, tiled in (("diffusers", False), ("diffusers tiled", True)):
        yield Case(f"decode {s}, {name}", partial(theirs, c, tiled), total, repeats=5, foreign=True)
