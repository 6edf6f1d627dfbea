"""Seeded random weights made where they are used: a full-size model without a checkpoint, in seconds.

Every tensor's seed follows from its name in the checkpoint, so that this engine and diffusers' modules get the same
numbers, however each groups them and in whatever order they are asked for.
"""

import math
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from consisid.engine.backends import backend
from consisid.engine.graphs import Graph, graph_table, weight_shapes
from consisid.engine.runtime import Networks
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import Variant

BIAS = 0.02  # scale of biases that belong to no norm


class RandomWeights:
    """The tensors of a checkpoint that does not exist; asked for by part and name, as engine.Checkpoint is.

    Matrices and convolutions are normal / sqrt(fan in), so that activations keep their size; norms are neutral.
    """

    def __init__(self, variant: Variant, shape: VideoShape, device: torch.device, dtype: torch.dtype, seed: int = 0):
        self.variant, self.shape = variant, shape
        self.device, self.dtype, self.seed = device, dtype, seed
        self.table = graph_table(variant, shape)
        self._shapes: dict[tuple[str, str], tuple[torch.Size, bool]] = {}
        for graph in self.table.values():
            self._add(graph)
        t = variant.transformer
        if t.use_learned_positional_embeddings:
            frames = (t.sample_frames - 1) // t.temporal_compression_ratio + 1
            tokens = frames * (t.sample_height // t.patch_size) * (t.sample_width // t.patch_size)
            size = torch.Size((1, t.max_text_seq_length + tokens, t.inner_dim))
            self._shapes["transformer", "patch_embed.pos_embedding"] = size, False

    def _add(self, graph: Graph) -> None:
        module = graph.module()
        norms = {n for n, m in module.named_modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm) or _is_rms(m)}
        for name, size in weight_shapes(module).items():
            neutral = name.rpartition(".")[0] in norms
            for layer in range(len(graph.layers)):
                sources = graph.sources(name, layer)
                part = torch.Size((size[0] // len(sources), *size[1:]))
                for source in sources:
                    self._shapes[graph.part, source] = part, neutral

    def has(self, part: str, name: str) -> bool:
        return (part, name) in self._shapes

    def tensor(self, part: str, name: str, shape: torch.Size | None = None) -> Tensor:
        """A tensor by its name in the checkpoint; `shape` for one that no graph reads.

        Raises:
            KeyError: a name that no graph reads, without a shape.
        """
        size, neutral = self._shapes.get((part, name), (shape, False))
        if size is None:
            raise KeyError(f"{part}/{name} is no tensor of this model.")
        if self.device.type == "meta":
            return torch.empty(size, device="meta", dtype=self.dtype)
        kind = name.rpartition(".")[2]
        if neutral:
            fill = torch.ones if kind == "weight" else torch.zeros
            return fill(size, device=self.device, dtype=self.dtype)
        seed = zlib.crc32(f"{self.seed} {part} {name}".encode())
        generator = torch.Generator(self.device).manual_seed(seed)
        scale = BIAS if kind == "bias" or kind == "pos_embedding" else 1 / math.sqrt(max(1, size[1:].numel()))
        noise = torch.randn(size, generator=generator, device=self.device, dtype=torch.float32)
        return noise.mul_(scale).to(self.dtype)

    def of(self, graph: Graph) -> list[tuple[Tensor, ...]]:
        """Per layer the tensors of a call of a graph, in the order of graphs.weight_shapes."""
        bound = []
        for layer in range(len(graph.layers)):
            tensors = []
            for name in weight_shapes(graph.module()):
                pieces = [self.tensor(graph.part, source) for source in graph.sources(name, layer)]
                tensors.append(pieces[0] if len(pieces) == 1 else torch.cat(pieces))
            bound.append(tuple(tensors))
        return bound

    def networks(self, names: Iterable[str] | None = None) -> Networks:
        """Graphs by the eager backend with these weights: those named, or all."""
        chosen = {name: self.table[name] for name in (names or self.table) if name in self.table}
        module = backend("eager")
        runners = {
            name: module.load(graph, None, self.device, list(weight_shapes(graph.module())))
            for name, graph in chosen.items()
        }
        weights: dict[str, Any] = {name: self.of(graph) for name, graph in chosen.items()}
        # What two graphs read is held once: the second chunk's decoder is the first's.
        if "decode_next" in weights and "decode_first" in weights:
            weights["decode_next"] = weights["decode_first"]
        return Networks(self.variant, runners, weights, self.device, self.dtype)

    def fill(self, part: str, module: nn.Module) -> nn.Module:
        """A module of diffusers or transformers, made on the meta device, with these weights in place of its own.

        Raises:
            KeyError: the module wants a tensor that this model does not have.
        """
        state = {}
        for name, tensor in module.state_dict().items():
            known = "shared.weight" if name == "encoder.embed_tokens.weight" else name  # transformers ties the two
            state[name] = self.tensor(part, known, tensor.shape)
        module.load_state_dict(state, assign=True)
        return module.eval().requires_grad_(False)


def _is_rms(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm")
