"""The random weights of an engine folder: as such a folder, for graphs without one, and in the modules of diffusers and
transformers that the engine is compared with.

Every tensor's seed follows from its name in the checkpoint, so that both get the same numbers, however each groups them
and in whatever order they are asked for.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consisid.engine.backends import backend
from consisid.engine.checkpoint.random_weights import RandomTensors
from consisid.engine.graphs.graph import Graph
from consisid.engine.graphs.table import graph_table
from consisid.engine.runtime.executor import GraphExecutor, Held, PerLayer
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import Variant
from consisid.export import build


def build_random(
    folder: Path, variant: str | Variant, device: torch.device, dtype: torch.dtype | None = None, backend: str = "eager"
) -> Path:
    """What `consisid-build VARIANT --random-weights` makes.

    Args:
        dtype: default float32 on a CPU, else bfloat16.
        backend: who compiles the graphs.
    """
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    build(variant, folder, backend=backend, dtype=name, device=str(device), random_weights=True)
    return folder


class RandomWeights:
    """A model's random tensors in one dtype on one device, bound to graphs or filled into modules of diffusers: the
    numbers that an engine folder with random weights has, which are drawn in bfloat16."""

    def __init__(self, variant: Variant, shape: VideoShape, device: torch.device, dtype: torch.dtype, seed: int = 0):
        self.variant, self.shape = variant, shape
        self.device, self.dtype = device, dtype
        self.table = graph_table(variant, shape)
        self._tensors = RandomTensors(variant, seed)

    def tensor(self, part: str, name: str, shape: torch.Size | None = None) -> Tensor:
        """A tensor by its name in the checkpoint; `shape` for one that no graph reads.

        Raises:
            CheckpointError: a name that no graph reads, without a shape.
        """
        return self._tensors.draw(part, name, self.device, torch.bfloat16, shape).to(self.dtype)

    def of(self, graph: Graph, layers: int | None = None) -> list[tuple[Tensor, ...]]:
        """Per layer, or for the first `layers`, the tensors of a call of a graph, in the order of Graph.weights."""
        bound = []
        for layer in range(len(graph.layers[:layers])):
            tensors = []
            for name in graph.weights:
                pieces = [self.tensor(graph.part, source) for source in graph.sources(name, layer)]
                tensors.append((pieces[0] if len(pieces) == 1 else torch.cat(pieces)).to(graph.dtype(self.dtype)))
            bound.append(tuple(tensors))
        return bound

    def networks(self, names: Iterable[str] | None = None, layers: int | None = None) -> GraphExecutor:
        """Graphs by the eager backend with these weights: those named, or all; of each all layers, or the first."""
        chosen = {name: self.table[name] for name in (names or self.table) if name in self.table}
        runners = {name: load_graph("eager", graph, None, self.device) for name, graph in chosen.items()}
        weights: dict[str, Any] = {name: self.of(graph, layers) for name, graph in chosen.items()}
        # What two graphs read is held once: the second chunk's decoder is the first's.
        if "decode_next" in weights and "decode_first" in weights:
            weights["decode_next"] = weights["decode_first"]
        return PerLayer(self.variant, runners, Held(weights), self.device, self.dtype)


def load_graph(name: str, graph: Graph, package: Path | None, device: torch.device) -> Any:
    """A graph by a backend, from the package that it was compiled into."""
    return backend(name).load(graph, package, device, list(graph.weights))


def diffusers_transformer(weights: RandomWeights) -> nn.Module:
    """diffusers' ConsisIDTransformer3DModel, or of its layers where it has no such class."""
    from consisid.engine.checkpoint.transformer_module import module_of

    return _filled(weights, "transformer", lambda: module_of(weights.variant.transformer))


def diffusers_vae(weights: RandomWeights) -> nn.Module:
    """diffusers' AutoencoderKLCogVideoX."""
    from diffusers import AutoencoderKLCogVideoX

    config = weights.variant.vae
    kinds = {
        f"{way.lower()}_block_types": (f"CogVideoX{way}Block3D",) * len(config.block_out_channels)
        for way in ("Down", "Up")
    }
    return _filled(weights, "vae", lambda: AutoencoderKLCogVideoX(**kinds, **asdict(config)))


def diffusers_text_encoder(weights: RandomWeights) -> nn.Module:
    """transformers' T5EncoderModel."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(**asdict(weights.variant.text), is_encoder_decoder=False, use_cache=False)
    return _filled(weights, "text_encoder", lambda: T5EncoderModel(config))


def _filled(weights: RandomWeights, part: str, make: Callable[[], nn.Module]) -> nn.Module:
    """A module with these weights in place of its own.

    Raises:
        CheckpointError: it wants a tensor that this model does not have.
    """
    with torch.device("meta"):
        module = make()
    state = {}
    for name, tensor in module.state_dict().items():
        known = "shared.weight" if name == "encoder.embed_tokens.weight" else name  # transformers ties the two
        state[name] = weights.tensor(part, known, tensor.shape)
    module.load_state_dict(state, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.device.type == "meta" and weights.device.type != "meta":
            raise RuntimeError(f"{type(module).__name__} keeps {name} outside its checkpoint.")
    return module.eval().requires_grad_(False)
