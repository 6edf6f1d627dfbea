"""The VAE decoder in two memory formats, chunk by chunk, and the T5 encoder, beside those of diffusers."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from consisid.engine.decode.frames import decode_chunks
from consisid.engine.runtime.executor import GraphExecutor, Held, PerLayer

from ..core import weights
from ..core.flops import decode_flops, text_flops, weight_bytes
from .cases import Case, Context, Work

FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}


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


def decode_ours(c: Context, layout: str) -> Work:
    """A whole decode, chunk by chunk; chunks are kept, as a caller would."""
    networks, latents = decoder(c, layout), latents_of(c)

    def run() -> list[Tensor]:
        return list(decode_chunks(networks, latents))

    if layout == "contiguous":
        return Work(run, note="compared with diffusers in its row")
    error = c.compare(frames_of(networks, latents), frames_of(decoder(c), latents))
    return Work(run, error, c.tolerance, "the error is between both formats")


def decode_theirs(c: Context, tiled: bool) -> Work:
    """diffusers' own decode, whole or tiled."""
    model: Any = c.once("theirs", lambda: weights.diffusers_vae(c.weights))
    latents = latents_of(c)

    def run() -> Tensor:
        (model.enable_tiling if tiled else model.disable_tiling)()
        frames: Tensor = model.decode(latents.transpose(1, 2), return_dict=False)[0]
        return frames

    if tiled or c.device.type == "meta":
        return Work(run, note="tiling changes the picture: no error is stated")
    error = c.compare(frames_of(decoder(c), latents), run())
    return Work(run, error, c.tolerance, "the error is between ours and theirs, at the full shape")


def decode(c: Context) -> Iterator[Case]:
    if c.device.type == "cpu":  # where the phase is only proven: a small video takes a tenth of the time
        c = small(c)
    flops = decode_flops(c.variant, c.shape)
    for layout in FORMATS:
        yield Case(f"decode {c.shape}, {layout}", partial(decode_ours, c, layout), flops, repeats=5)
    for name, tiled in (("diffusers", False), ("diffusers tiled", True)):
        yield Case(f"decode {c.shape}, {name}", partial(decode_theirs, c, tiled), flops, repeats=5, foreign=True)


def encode(c: Context, ids: Tensor) -> Tensor:
    """Text embeddings [B, T, d_model] of ids [B, T], every layer with its own weights."""
    networks = c.once("text", lambda: c.weights.networks(["text_embed", "text_layer", "text_norm"]))
    hidden, bias = networks.many("text_embed", ids)
    embeds: Tensor = networks.one("text_norm", networks.text_layers([(hidden, bias)])[0])
    return embeds


def ids_of(c: Context, batch: int = 1) -> Tensor:
    size = (batch, c.variant.transformer.max_text_seq_length)
    ids = torch.randint(2, c.variant.text.vocab_size - 1, size, generator=torch.Generator().manual_seed(3))
    return ids.to(c.device)


def encode_ours(c: Context, batch: int) -> Work:
    return Work(partial(encode, c, ids_of(c, batch)), note="compared with transformers in its row")


def encode_theirs(c: Context) -> Work:
    model, ids = weights.diffusers_text_encoder(c.weights), ids_of(c)
    error = c.compare(encode(c, ids), model(ids)[0])
    note = "the error is between ours and theirs, over all layers"
    return Work(lambda: model(ids)[0], error, 5 * c.tolerance, note)


def text(c: Context) -> Iterator[Case]:
    flops, layers = text_flops(c.variant, c.shape), c.variant.text.num_layers
    moved = weight_bytes(c.variant, c.shape, ("text_layer",), c.dtype.itemsize)
    for batch in (1, 2):
        name = f"T5, {layers} layers, {batch} prompt{'s' * (batch > 1)}"
        yield Case(name, partial(encode_ours, c, batch), batch * flops, moved)
    yield Case("T5, transformers, 1 prompt", partial(encode_theirs, c), flops, moved, foreign=True)
