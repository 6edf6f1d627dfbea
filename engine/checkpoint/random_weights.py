"""Full-size models without a checkpoint: seeded random weights that are made when asked for and stored nowhere.

Time and memory do not depend on the values, so an engine can be measured on a machine that has no checkpoint.
"""

import math
import zlib
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..graphs.graph import weight_shapes
from ..graphs.table import graph_table
from ..shapes import VideoShape
from ..variants import Variant
from .reading import Checkpoint

PREFIX = "random:"
BIAS = 0.02  # scale of biases and positions
PERIOD = 2**22 - 3  # numbers that are drawn; odd, so that rows of a matrix do not repeat


class RandomTensors:
    """Every tensor that the graphs of a model read, by part and name, made when it is asked for.

    All take their numbers from one table of PERIOD, each from a place that follows from its name in the checkpoint: at
    the speed of a copy, and the same on every device and in whatever order they are asked for. Matrices and
    convolutions are normal / sqrt(fan in), so that activations keep their size; norms are neutral.
    """

    def __init__(self, variant: Variant, seed: int = 0):
        self.model, self.seed = variant, seed

    @cached_property
    def _numbers(self) -> Tensor:
        """Normal, float32 [2 * PERIOD]: the table twice, so that every stretch of it is in one piece."""
        drawn = torch.randn(PERIOD, generator=torch.Generator().manual_seed(self.seed))
        return torch.cat((drawn, drawn))

    @cached_property
    def shapes(self) -> dict[tuple[str, str], tuple[torch.Size, bool]]:
        """By part and name the shape, and whether the tensor belongs to a norm."""
        found: dict[tuple[str, str], tuple[torch.Size, bool]] = {}
        for graph in graph_table(self.model, VideoShape.of(self.model, None, None, None)).values():
            module = graph.module()
            norms = {name for name, part in module.named_modules() if _is_norm(part)}
            for name, size in weight_shapes(module).items():
                neutral = name.rpartition(".")[0] in norms
                for layer in range(len(graph.layers)):
                    sources = graph.sources(name, layer)
                    part = torch.Size((size[0] // len(sources), *size[1:]))
                    found |= {(graph.part, source): (part, neutral) for source in sources}
        config = self.model.transformer
        if config.use_learned_positional_embeddings:
            frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
            rows, columns = config.sample_height // config.patch_size, config.sample_width // config.patch_size
            size = torch.Size((1, config.max_text_seq_length + frames * rows * columns, config.inner_dim))
            found["transformer", "patch_embed.pos_embedding"] = size, False
        return found

    def draw(
        self, part: str, name: str, device: torch.device | str, dtype: torch.dtype, shape: torch.Size | None = None
    ) -> Tensor:
        """A tensor by its name in the checkpoint; `shape` for one that no graph reads.

        Raises:
            CheckpointError: a name that no graph reads, without a shape.
        """
        size, neutral = self.shapes.get((part, name), (shape, False))
        if size is None:
            raise CheckpointError(f"The {self.model.name} model has no tensor called {name} in its {part}.")
        if torch.device(device).type == "meta":
            return torch.empty(size, device="meta", dtype=dtype)
        kind = name.rpartition(".")[2]
        if neutral:
            fill = torch.ones if kind in ("weight", "running_var") else torch.zeros
            return fill(size, device=device, dtype=dtype)
        first = zlib.crc32(f"{part} {name}".encode()) % PERIOD
        scale = BIAS if kind in ("bias", "pos_embedding") else 1 / math.sqrt(max(1, size[1:].numel()))
        stretch = (self._numbers[first : first + min(size.numel(), PERIOD)] * scale).to(dtype)
        if size.numel() <= PERIOD:
            return stretch.view(size).to(device)
        drawn = torch.empty(size, dtype=dtype)
        for piece in drawn.view(-1).split(PERIOD):
            piece.copy_(stretch[: len(piece)])
        return drawn.to(device)


class RandomWeights(Checkpoint):
    """A checkpoint whose tensors are drawn when they are asked for, in bfloat16.

    Args:
        path: a folder with scheduler/ and tokenizer/ only.
        variant: the model.
        seed: of all tensors.
        only: as in Checkpoint.
    """

    def __init__(self, path: Path, variant: Variant, seed: int, only: Collection[str] | None = None):
        super().__init__(path, only=only)
        self.tensors = RandomTensors(variant, seed)

    @property
    def variant(self) -> Variant:
        return self.tensors.model

    def files(self) -> list[Path]:
        """Scheduler and tokenizer: the weights are in no file."""
        return sorted(file.relative_to(self.path) for file in self.path.rglob("*.*") if file.is_file())

    def has(self, part: str, name: str) -> bool:
        return (part, name) in self.tensors.shapes

    def names(self, part: str) -> Collection[str]:
        return {name for of, name in self.tensors.shapes if of == part}

    def tensor(self, part: str, name: str, device: torch.device | str = "cpu") -> Tensor:
        return self.tensors.draw(part, name, device, torch.bfloat16)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm | nn.GroupNorm) or type(module).__name__.endswith(("RMSNorm", "BatchNorm"))
