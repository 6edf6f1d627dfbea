"""The T5 encoder over one prompt: every layer with its own weights, as the engine calls it, and transformers'."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from consisid.engine.runtime.executor import GraphExecutor

from ..core.flops import text_flops, weight_bytes
from ..core.reference import text_encoder as reference_encoder
from ..core.weights import RandomWeights
from .cases import Case, Context, Work

GRAPHS = ("text_embed", "text_layer", "text_norm")


def encode(networks: GraphExecutor, ids: Tensor) -> Tensor:
    """Text embeddings [B, T, d_model] of ids [B, T]."""
    hidden, bias = networks.many("text_embed", ids)
    for layer in range(networks.variant.text.num_layers):
        hidden = networks.one("text_layer", hidden, bias, layer=layer)
    return networks.one("text_norm", hidden)


def ids_of(c: Context, batch: int = 1) -> Tensor:
    if c.device.type == "meta":
        return torch.empty(batch, c.variant.transformer.max_text_seq_length, dtype=torch.int64, device="meta")
    generator = torch.Generator().manual_seed(3)
    size = (batch, c.variant.transformer.max_text_seq_length)
    return torch.randint(2, c.variant.text.vocab_size - 1, size, generator=generator).to(c.device)


def ours(c: Context, batch: int) -> Work:
    """The check is two layers against transformers' in float32."""
    networks = c.once("text", lambda: c.weights.networks(GRAPHS))
    ids, error = ids_of(c, batch), None
    if c.device.type != "meta":
        few = replace(c.variant, text=replace(c.variant.text, num_layers=2))
        weights = RandomWeights(few, c.shape, c.device, c.dtype)
        right = reference_encoder(weights).float()(ids)[0]
        error = c.compare(encode(weights.networks(GRAPHS), ids), right)
    return Work(lambda: encode(networks, ids), error, c.tolerance, "checked over two layers against float32")


def theirs(c: Context) -> Work:
    model, ids = reference_encoder(c.weights), ids_of(c)
    networks = c.once("text", lambda: c.weights.networks(GRAPHS))
    error = None if c.device.type == "meta" else c.compare(encode(networks, ids), model(ids)[0])
    return Work(lambda: model(ids)[0], error, 5 * c.tolerance, "the error is between ours and theirs, over all layers")


def cases(c: Context) -> Iterator[Case]:
    flops = text_flops(c.variant, c.shape)
    moved = float(weight_bytes(c.variant, c.shape, ("text_layer",), c.dtype.itemsize))
    for batch in (1, 2):
        name = f"T5, {c.variant.text.num_layers} layers, {batch} prompt{'s' * (batch > 1)}"
        yield Case(name, partial(ours, c, batch), batch * flops, moved)
    yield Case("T5, transformers, 1 prompt", partial(theirs, c), flops, moved, foreign=True)
