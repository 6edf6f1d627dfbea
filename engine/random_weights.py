"""Full-size models without a checkpoint: seeded random weights that are made on the device and stored nowhere.

Time and memory do not depend on the values, so an engine can be measured on a machine that has no checkpoint.
"""

import hashlib
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .errors import CheckpointError
from .graphs import graph_table, weight_shapes
from .manifest import Manifest
from .shapes import VideoShape
from .variants import Variant

PREFIX = "random:"


class RandomWeights(Checkpoint):
    """A checkpoint whose tensors are drawn when they are asked for; the same name gives the same tensor on a device.

    Args:
        path: a folder with scheduler/ and tokenizer/ only.
        seed: of all tensors.
    """

    def __init__(self, path: Path, variant: Variant, seed: int):
        super().__init__(path)
        self.model, self.seed = variant, seed

    @property
    def variant(self) -> Variant:
        return self.model

    def files(self) -> list[Path]:
        return []

    @cached_property
    def shapes(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Every tensor that the graphs read, by part and name, with its shape."""
        config, shape = self.model.transformer, VideoShape.of(self.model, None, None, None)
        found: dict[tuple[str, str], tuple[int, ...]] = {}
        for graph in graph_table(self.model, shape).values():
            for name, size in weight_shapes(graph.module()).items():
                for layer in range(len(graph.layers)):
                    sources = graph.sources(name, layer)
                    found |= {(graph.part, source): (size[0] // len(sources), *size[1:]) for source in sources}
        if config.use_learned_positional_embeddings:
            tokens = config.max_text_seq_length + shape.video_tokens
            found["transformer", "patch_embed.pos_embedding"] = (1, tokens, config.inner_dim)
        return found

    def has(self, part: str, name: str) -> bool:
        return (part, name) in self.shapes

    def tensor(self, part: str, name: str, device: torch.device | str = "cpu") -> Tensor:
        """bfloat16; norms near one, biases near zero, matrices that keep the variance of what they multiply."""
        if not self.has(part, name):
            raise CheckpointError(f"The {self.model.name} model has no tensor called {name} in its {part}.")
        shape = self.shapes[part, name]
        digest = hashlib.sha256(f"{self.seed} {part} {name}".encode()).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        noise = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
        if len(shape) > 1:
            return noise * (noise[0].numel() ** -0.5)
        return 0.02 * noise + (1 if name.endswith("weight") else 0)


def open_checkpoint(folder: Path, manifest: Manifest) -> Checkpoint:
    """The checkpoint that an engine folder refers to."""
    path, source = manifest.checkpoint_path(folder), manifest.spec.checkpoint
    if source.startswith(PREFIX):
        return RandomWeights(path, manifest.spec.variant, int(source.removeprefix(PREFIX)))
    return Checkpoint(path)
