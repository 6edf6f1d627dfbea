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
from ..core.weights import RandomWeights
from .cases import Case, Context, Work

FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}
GRAPHS = ("decode_first", "decode_next")


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


def formatted(networks: GraphExecutor, layout: str) -> GraphExecutor:
    """The same decoder with its five-dimensional weights in a memory format; activations follow the weights."""
    weights: dict[str, Any] = {
        name: [
            tuple(x.contiguous(memory_format=FORMATS[layout]) if x.dim() == 5 else x for x in tensors)
            for tensors in layers
        ]
        for name, layers in RandomWeights.held(networks).items()
    }
    return PerLayer(networks.variant, networks.runners, Held(weights), networks.device, networks.dtype)


def whole(networks: GraphExecutor, latents: Tensor, layout: str) -> list[Tensor]:
    """All frames, a chunk at a time; chunks are kept, as a caller would."""
    runners = networks.runners
    if layout != "contiguous":  # decode_chunks cuts contiguous parts: the graph's first input is laid out here

        def laid(run: Any) -> Any:
            return lambda inputs, weights: run(
                (inputs[0].contiguous(memory_format=FORMATS[layout]), *inputs[1:]), weights
            )

        runners = {name: laid(run) for name, run in runners.items()}
    shown = PerLayer(networks.variant, runners, networks.weights, networks.device, networks.dtype)
    return list(decode_chunks(shown, latents))


def together(chunks: list[Tensor]) -> Tensor:
    """Chunks [n, 3, H, W] as diffusers returns a video: [1, 3, F, H, W]."""
    return torch.cat(chunks)[None].transpose(1, 2)


def latents_of(c: Context) -> Tensor:
    s = c.shape
    return c.randn(1, s.latent_frames, c.variant.vae.latent_channels, s.latent_height, s.latent_width, seed=20)


def small(c: Context) -> Context:
    """The same decoder for a small video, in which a float32 reference is cheap."""
    ratio = c.variant.vae.spatial_ratio
    frames = min(5, c.shape.latent_frames)
    shape = replace(
        c.shape, height=4 * ratio, width=6 * ratio, num_frames=4 * frames - 3, latent_frames=frames, latent_height=4,
        latent_width=6, rows=2, columns=3,
    )  # fmt: skip
    return replace(c, shape=shape, _made={})


def ours(c: Context, layout: str) -> Work:
    """A whole decode; the check is against diffusers' decoder in float32 on a small video."""
    networks = c.once("decoder", lambda: c.weights.networks(GRAPHS))
    if layout != "contiguous":
        networks = formatted(networks, layout)
    latents = latents_of(c)
    work = Work(lambda: whole(networks, latents, layout), None, 5 * c.tolerance, "checked on a small video")
    if c.device.type != "meta":
        few = small(c)
        given = latents_of(few)
        little = formatted(few.weights.networks(GRAPHS), layout)
        got = together(whole(little, given, layout))
        exact = RandomWeights(few.variant, few.shape, few.device, few.dtype)
        model: Any = reference_vae(exact).float()
        right = model.decode(given.transpose(1, 2).float()).sample
        work.error = c.compare(got, right)
    return work


def theirs(c: Context, tiled: bool) -> Work:
    """diffusers' own decode, whole or tiled."""
    model: Any = c.once("theirs", lambda: reference_vae(c.weights))
    if tiled:
        model.enable_tiling()
    else:
        model.disable_tiling()
    latents = latents_of(c).transpose(1, 2)

    def run() -> Tensor:
        (model.enable_tiling if tiled else model.disable_tiling)()
        return model.decode(latents, return_dict=False)[0]

    if tiled:
        return Work(run, note="tiling changes the picture: no error is stated")
    error = None
    if c.device.type != "meta":
        networks = c.once("decoder", lambda: c.weights.networks(GRAPHS))
        got = together(whole(networks, latents_of(c), "contiguous"))
        error = c.compare(got, run())
    return Work(run, error, c.tolerance, "the error is between ours and theirs, at the full shape")


def cases(c: Context) -> Iterator[Case]:
    if c.device.type == "cpu":  # where the phase is only proven: a small video takes a tenth of the time
        c = small(c)
    v, s = c.variant.vae, c.shape
    levels = [(v.block_out_channels[0], 8, s.height, s.width)]
    if len(v.block_out_channels) > 1:
        levels.append((v.block_out_channels[-2], 8, s.height // 2, s.width // 2))
    for channels, frames, height, width in levels:
        flops = 2.0 * 27 * channels**2 * frames * height * width
        moved = 2.0 * channels * frames * height * width * c.dtype.itemsize
        for layout in FORMATS:
            yield Case(
                f"conv3d {channels} channels, {frames} x {height} x {width}, {layout}",
                partial(convolution, c, channels, frames, height, width, layout),
                flops,
                moved,
            )
    total = c.once("flops", lambda: decode_flops(c.variant, c.shape))
    for layout in FORMATS:
        yield Case(f"decode {s}, {layout}", partial(ours, c, layout), total, repeats=5)
    yield Case(f"decode {s}, diffusers", partial(theirs, c, tiled=False), total, repeats=5, foreign=True)
    yield Case(f"decode {s}, diffusers tiled", partial(theirs, c, tiled=True), total, repeats=5, foreign=True)
