"""A graph: a network that is compiled once and called once per entry of `layers`, each time with other weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import nn

# In the order of a video. A call of a graph of another stage ends the one before.
STAGES = ("photo", "face", "image", "text", "prepare", "schedule", "denoise", "decode")


@dataclass(frozen=True)
class Spec:
    """A tensor that a graph takes. An int is a fixed size, a letter a size that may change from call to call: B samples
    in the denoising loop, N steps, H x W pixels of a photo. What runs once per prompt or video runs for one at a time.

    dtype None stands for the dtype that the engine was built for.
    """

    shape: tuple[int | str, ...]
    dtype: torch.dtype | None = None

    def example(self, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
        shape = tuple(sizes[n] if isinstance(n, str) else n for n in self.shape)
        if self.dtype is torch.int64:
            return torch.ones(shape, dtype=torch.int64, device=device)
        return torch.randn(shape, dtype=torch.float32, device=device).to(self.dtype or dtype)


@dataclass(frozen=True)
class Graph:
    """One network: how to make its module, what it takes, where a checkpoint keeps its weights, and what may be done
    with it.

    Attributes:
        part: the folder of the checkpoint.
        layers: the prefix of the weights' names, one per layer.
        stage: of STAGES, in which it is called.
        renamed: names of weights that the checkpoint has under others.
        exact: runs in float32 whatever the engine's dtype, as in the reference.
        more_inputs: those that only a trial run tells.
        streams: its layers are called one after the other, and each is large: they may come while it runs.
        grouped: several layers of it are one graph where engines hold their weights (grouped.py).
        chunked: its feed-forward can go through its tokens in pieces.
        kept: of what it gives, something is read after the next call of a graph.
    """

    name: str
    part: str
    make: Callable[[], nn.Module]
    inputs: Mapping[str, Spec]
    layers: tuple[str, ...] = ("",)
    renamed: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False
    more_inputs: Callable[[], Mapping[str, Spec]] | None = None
    stage: str = ""
    streams: bool = False
    grouped: bool = False
    chunked: bool = False
    kept: bool = False

    def specs(self) -> dict[str, Spec]:
        """Every tensor that the graph takes, in order."""
        return dict(self.inputs) | dict(self.more_inputs() if self.more_inputs else {})

    def dtype(self, engine: torch.dtype) -> torch.dtype:
        """What its weights and inputs are in, in an engine of a dtype."""
        return torch.float32 if self.exact else engine

    def module(self) -> nn.Module:
        """The module without weights, on the meta device."""
        with torch.device("meta"):
            return self.make().eval().requires_grad_(False)

    @cached_property
    def weights(self) -> Mapping[str, torch.Size]:
        """Names and shapes of everything that is bound at a call, in the order of the module."""
        return weight_shapes(self.module())

    def sources(self, weight: str, layer: int) -> tuple[str, ...]:
        """The tensors of the checkpoint that, stacked along the first dimension, are `weight` of that layer."""
        name = self.renamed.get(weight, weight)
        parts = [name.replace("to_qkv", part) for part in ("to_q", "to_k", "to_v")] if "to_qkv" in name else [name]
        return tuple(self.layers[layer] + part for part in parts)


def in_ff_chunks(graph: Graph, rows: int) -> Graph:
    """A chunked graph with its feed-forward in pieces of the tokens: other sums, the same within rounding."""
    return replace(graph, make=partial(graph.make, rows=rows))  # type: ignore[call-arg]


def weight_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of everything that is bound at a call: parameters, and buffers that a checkpoint holds."""
    tensors = dict(module.named_parameters()) | {
        name: buffer for name, buffer in module.named_buffers() if not name.endswith("num_batches_tracked")
    }
    return {name: tensor.shape for name, tensor in tensors.items()}
