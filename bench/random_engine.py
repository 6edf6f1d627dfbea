"""An engine without a folder or a checkpoint: seeded random weights on the device. For measuring, not for videos."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from consisid.engine import ConsisID
from consisid.engine.denoise import Positions
from consisid.engine.errors import InputError
from consisid.engine.manifest import BuildSpec, Manifest, kernels_hash, provenance
from consisid.engine.residency import Residency
from consisid.engine.runtime import Networks
from consisid.engine.shapes import VideoShape
from consisid.engine.stream import lane_of
from consisid.engine.text import TextEncoder
from consisid.engine.variants import Variant

from . import reference
from .weights import RandomWeights


class RandomTokens:
    """Stands where a tokenizer does: ids int64 [B, length] that depend on the text and mean nothing."""

    def __init__(self, length: int, vocabulary: int):
        self.length, self.vocabulary = length, vocabulary

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        rows = []
        for prompt in prompts:
            generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
            rows.append(torch.randint(2, self.vocabulary - 1, (self.length,), generator=generator))
        return torch.stack(rows)


class RandomEngine(ConsisID):
    """A ConsisID of a variant at the size that it was trained at, by the eager backend.

    Identities have to be given as embeddings: there are no face models.
    """

    def __init__(self, variant: Variant, device: torch.device, dtype: torch.dtype, seed: int = 0):
        shape = VideoShape.of(variant, None, None, None)
        name = str(dtype).removeprefix("torch.")
        spec = BuildSpec(variant, *shape.pixels, name, "eager", str(device), kernels_hash(), f"random, seed {seed}")
        self.folder, self.device = Path(), device
        self.manifest = Manifest(spec, provenance(device), {}, "", {})
        self.variant, self.shape, self.dtype = variant, shape, dtype
        self.memory = None
        self.weights = Residency(cast(Any, None), device, dtype, lane_of(device))  # without a plan it holds nothing
        self.source = RandomWeights(variant, shape, device, dtype, seed)
        names = [name for name in self.source.table if name != "eva"]
        self._all = self.source.networks(names)
        learned = None
        if variant.transformer.use_learned_positional_embeddings:
            learned = self.source.tensor("transformer", "patch_embed.pos_embedding")
        self._where = Positions(self._all, shape, variant.transformer, learned)
        self.scheduler = reference.scheduler()
        tokens = RandomTokens(variant.transformer.max_text_seq_length, variant.text.vocab_size)
        self.text_encoder = TextEncoder(cast(Any, tokens))

    def networks(self, shape: VideoShape | None = None) -> Networks:
        if shape is not None and shape != self.shape:
            raise InputError(f"Random weights are made for {self.shape} only.")
        return self._all

    def positions(self, shape: VideoShape) -> Positions:
        return self._where

    def pipeline(self) -> Any:
        """diffusers' pipeline with the same weights; it has no tokenizer, so it takes prompt_embeds."""
        from diffusers import ConsisIDPipeline

        parts = {
            "transformer": reference.transformer(self.source),
            "vae": reference.vae(self.source),
            "text_encoder": reference.text_encoder(self.source),
        }
        return ConsisIDPipeline(tokenizer=None, scheduler=reference.scheduler(), **parts)
