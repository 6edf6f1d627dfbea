"""What a caller asks of generate, checked before anything is computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..decode.diffusers_tiles import check_reference
from ..decode.tile import check_tile
from ..errors import InputError, shown
from ..sampling import check_scheduler, draw, generators
from ..shapes import VideoShape, whole
from ..text import check_prompt

if TYPE_CHECKING:
    from ..engine import Engine

from .options import EMBEDDINGS, Options

VIDEO_SIZES = ("height", "width", "num_frames")


@dataclass(frozen=True)
class Request:
    """Options that an engine can run.

    Attributes:
        shape: of the videos.
        texts: the prompts; None where embeddings were given.
        prompts: texts or embeddings that were given; `batch` videos are made of them.
        guided: with classifier-free guidance.
        single: one video is given back, not a list of them.
    """

    options: Options
    shape: VideoShape
    texts: list[str] | None
    prompts: int
    batch: int
    guided: bool
    generator: torch.Generator | list[torch.Generator]
    device: torch.device
    dtype: torch.dtype
    single: bool

    @classmethod
    def check(cls, engine: "Engine", options: Options, as_reference: bool = False) -> "Request":
        """A request that can be run.

        Args:
            as_reference: what the reference takes is taken: empty prompts, and numbers of frames that the decoder turns
                into others.

        Raises:
            InputError: one sentence naming the argument, what is wrong and what would do.
        """
        sizes = {
            n: getattr(engine.shape, n) if getattr(options, n) is None else getattr(options, n) for n in VIDEO_SIZES
        }
        shape = VideoShape.of(engine.variant, **sizes, any_frames=as_reference)
        options.check()
        embeds, length = options.prompt_embeds, engine.variant.transformer.max_text_seq_length
        if embeds is not None and (embeds.dim() != 3 or not len(embeds)):
            raise InputError(f"prompt_embeds has the shape {list(embeds.shape)}; it has to be [b, {length}, d_model].")
        texts = None if embeds is not None else check_prompt(options.prompt, may_be_empty=as_reference)
        prompts = len(embeds if embeds is not None else texts or [])
        options.check_negative(prompts)
        batch = prompts * options.num_videos_per_prompt
        layers, grouped = engine.variant.transformer.num_layers, engine.manifest.spec.layers_per_shard
        if options.left_out.first_block and (grouped or layers < 2):
            raise InputError("first_block needs two blocks at least, with a graph each; use cache with this engine.")
        check_scheduler(engine.scheduler, options.num_inference_steps, options.schedule)
        asked_length = options.max_sequence_length
        if asked_length is not None and whole("max_sequence_length", asked_length) != length:
            raise InputError(
                f"max_sequence_length={shown(options.max_sequence_length)}: this model's graphs take {length} tokens "
                "of text; leave it out."
            )
        tile = check_tile(options.tile, engine.variant.vae)
        if options.decode == "tiled-reference":
            check_reference(shape, tile, engine.variant.vae.spatial_ratio)
        request = cls(
            options, shape, texts, prompts, batch, options.guidance_scale > 1.0,
            generators(options.seed, options.generator, batch), engine.device, engine.dtype,
            single=not isinstance(options.prompt, list | tuple) and batch == 1,
        )  # fmt: skip
        request._check_tensors(engine)
        return request

    def _check_tensors(self, engine: "Engine") -> None:
        config, shape = engine.variant.transformer, self.shape
        text = (self.prompts, config.max_text_seq_length, config.text_embed_dim)
        noise = (
            self.batch, shape.loop_frames, engine.variant.vae.latent_channels, shape.latent_height, shape.latent_width
        )  # fmt: skip
        for name, expected in (*((name, text) for name in EMBEDDINGS), ("latents", noise)):
            tensor = getattr(self.options, name)
            if tensor is not None and tuple(tensor.shape) != expected:
                raise InputError(
                    f"{name} has the shape {list(tensor.shape)}; for this video it has to be {list(expected)}."
                )

    @property
    def may_tile(self) -> bool:
        """Whether a plan of the memory may cut the decoder into tiles: unless the caller wants whole frames."""
        return self.options.decode != "whole"

    def embeds(self, encode: Callable[[Sequence[str]], Tensor]) -> tuple[Tensor, Tensor | None]:
        """Embeddings [G * b, T, d_model], with guidance the negative ones first; and these alone, None without."""
        options = self.options
        given = options.prompt_embeds
        embeds = self._for_each_video(encode(self.texts or []) if given is None else given)
        if not self.guided:
            return embeds, None
        negative = options.negative_prompt_embeds
        if negative is None:
            texts = options.negative_prompt or ""
            negative = encode([texts] * self.prompts if isinstance(texts, str) else list(texts))
        negative = self._for_each_video(negative)
        return torch.cat((negative, embeds)), negative

    @property
    def all_texts(self) -> list[str]:
        """What `embeds` will encode."""
        if self.texts is None:
            return []
        negative = self.options.negative_prompt or ""
        others = [negative] if isinstance(negative, str) else list(negative)
        return [*self.texts, *(others if self.guided else [])]

    def _for_each_video(self, embeds: Tensor) -> Tensor:
        return embeds.to(self.device, self.dtype).repeat_interleave(self.options.num_videos_per_prompt, dim=0)

    def noise(self, channels: int) -> Tensor:
        """[b, F, channels, h, w]: the caller's latents, or drawn."""
        given, shape = self.options.latents, self.shape
        if given is not None:
            return given.to(self.device, self.dtype)
        size = (self.batch, shape.loop_frames, channels, shape.latent_height, shape.latent_width)
        return draw(size, self.generator, self.device, self.dtype)
