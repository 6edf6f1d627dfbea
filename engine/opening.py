"""Opening an engine folder: verify it, load its graphs and bind its weights."""

from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from .backends import backend
from .denoise import Positions
from .errors import EngineError, InputError
from .face import Faces
from .graphs import graph_table, weight_shapes
from .manifest import DTYPES, Manifest
from .random_weights import open_checkpoint
from .runtime import Networks, WeightStore
from .schedulers import load_scheduler
from .shapes import VideoShape
from .text import TextEncoder, Tokenizer


class Opened:
    """An open engine folder. `ConsisID` adds what it can do.

    Attributes:
        manifest: what the folder is.
        variant: the model.
        shape: the video that it was built for.
        device, dtype: where and in what it runs.
        scheduler: a diffusers scheduler; another can be put in its place.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device):
        self.folder, self.manifest, self.device = folder, manifest, device
        self.variant, self.shape = manifest.spec.variant, manifest.spec.shape
        self.dtype = DTYPES[manifest.spec.dtype]
        self.checkpoint = open_checkpoint(folder, manifest)
        self._weights = WeightStore(self.checkpoint, device, self.dtype)
        self._networks: dict[VideoShape, Networks] = {}
        self._positions: dict[VideoShape, Positions] = {}
        self.networks(self.shape)

    @classmethod
    def open(cls, folder: str | Path, device: str | torch.device | None = None, *, verify: bool = False) -> Self:
        """Open an engine folder that consisid-build made.

        Args:
            folder: the engine folder.
            device: where it runs; default where it was built for.
            verify: read and hash the weights too, not only what is executed.

        Raises:
            EngineError: a folder that is no engine, or stale, foreign, damaged or unfinished.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        place = check_device(device or manifest.spec.device)
        manifest.verify(folder, place, full=verify)
        return cls(folder, manifest, place)

    def networks(self, shape: VideoShape | None = None) -> Networks:
        """The graphs for a shape; compiled ones exist only for the shape that they were built for."""
        shape = shape or self.shape
        if shape not in self._networks:
            self._networks[shape] = self._load(shape)
        return self._networks[shape]

    def _load(self, shape: VideoShape) -> Networks:
        entries = self.manifest.graphs
        if shape != self.shape and any(entry.file for entry in entries.values()):
            flags = f"--height {shape.height} --width {shape.width} --num-frames {shape.num_frames}"
            raise EngineError(
                f"{self.folder} was built for {self.shape} and makes no other video; build another folder with "
                f"consisid-build {flags} for {shape}."
            )
        runners, weights = {}, {}
        for name, graph in graph_table(self.variant, shape).items():
            entry = entries.get(name)
            names = entry.weights if entry else list(weight_shapes(graph.module()))
            module = backend(entry.backend if entry else "eager")
            file = self.folder / entry.file if entry and entry.file else None
            runners[name] = module.load(graph, file, self.device, names)
            weights[name] = self._weights.of(graph, names)
        return Networks(self.variant, runners, weights, self.device, self.dtype)

    def positions(self, shape: VideoShape) -> Positions:
        """Rotary tables and additive positions of a shape: once per shape."""
        if shape not in self._positions:
            config, learned = self.variant.transformer, None
            if config.use_learned_positional_embeddings:
                learned = self.checkpoint.tensor("transformer", "patch_embed.pos_embedding")
            self._positions[shape] = Positions(self.networks(shape), shape, config, learned)
        return self._positions[shape]

    @cached_property
    def text_encoder(self) -> TextEncoder:
        model = self.checkpoint.path / "tokenizer" / "spiece.model"
        return TextEncoder(Tokenizer(model, self.variant.transformer.max_text_seq_length))

    @cached_property
    def scheduler(self) -> Any:
        return load_scheduler(self.checkpoint.path / "scheduler")

    @cached_property
    def faces(self) -> Faces:
        return Faces(self.networks(), self.checkpoint)

    @property
    def image_scale(self) -> float:
        """What the face image's latents are multiplied with."""
        return self.variant.vae.scaling_factor


def check_device(name: str | torch.device) -> torch.device:
    """A device that exists.

    Raises:
        InputError: a name that torch does not know, or a GPU that this machine does not have.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={name!r} is not a device; it is cpu, cuda or cuda:0, cuda:1, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={name!r}: PyTorch sees no CUDA GPU on this machine; use a build for the CPU.")
    return device
