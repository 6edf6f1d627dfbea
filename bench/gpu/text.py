"""The T5 encoder over one prompt: every layer with its own weights, as the engine calls it, and transformers'."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from consisid.engine.runtime.executor import GraphExecutor

from ..core.flops import text_flops, weight_bytes
from ..core.reference import text_encoder as reference_encoder
from .cases import Case, Context, Work

GRAPHS = ("text_embed", "text_layer", "text_norm")


def encode(networks: GraphExecutor, ids: Tensor) -> Tensor:
    """Text embeddings [B, T, d_model] of ids [B, T]."""
    hidden, bias = networks.many("text_embed", ids)
    return networks.one("text_norm", networks.text_layers([(hidden, bias)])[0])


def ids_of(c: Context, batch: int = 1) -> Tensor:
    size = (batch, c.variant.transformer.max_text_seq_length)
    ids = torch.randint(2, c.variant.text.vocab_size - 1, size, generator=torch.Generator().manual_seed(3))
    return ids.to(c.device)


def ours(c: Context, batch: int) -> Work:
    networks, ids = c.once("text", lambda: c.weights.networks(GRAPHS)), ids_of(c, batch)
    return Work(lambda: encode(networks, ids), note="compared with transformers in its row")


def theirs(c: Context) -> Work:
    model, ids = reference_encoder(c.weights), ids_of(c)
    got = encode(c.once("text", lambda: c.weights.networks(GRAPHS)), ids)
    note = "the error is between ours and theirs, over all layers"
    return Work(lambda: model(ids)[0], c.compare(got, model(ids)[0]), 5 * c.tolerance, note)


def cases(c: Context) -> Iterator[Case]:
    flops, layers = text_flops(c.variant, c.shape), c.variant.text.num_layers
    moved = weight_bytes(c.variant, c.shape, ("text_layer",), c.dtype.itemsize)
    for batch in (1, 2):
        name = f"T5, {layers} layers, {batch} prompt{'s' * (batch > 1)}"
        yield Case(name, partial(ours, c, batch), batch * flops, moved)
    yield Case("T5, transformers, 1 prompt", partial(theirs, c), flops, moved, foreign=True)
