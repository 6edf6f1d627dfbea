"""The shape of a video, in pixels, latents and tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

from .errors import InputError, shown
from .variants import Variant

MAX_SIDE = 16384  # pixels; no encoder of H.264 takes more
# 30 times the model's own 49 frames of 720 x 480, at 900 times the attention: what is more is a slip of the hand that
# would fill a machine before anything says so.
MAX_TOKENS = 2**19


def whole(name: str, value: object) -> int:
    """The value of an argument that has to be a whole number.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name}={shown(value)} is not a whole number.")
    return int(value)


@dataclass(frozen=True)
class VideoShape:
    """Height and width in pixels and the number of frames, with what follows from them for one model.

    Attributes:
        latent_frames, latent_height, latent_width: of the latents that are decoded.
        padding: latent frames that the loop has in front of these, where patches reach over time.
        depth, rows, columns: patches of the latents in the loop.
    """

    height: int
    width: int
    num_frames: int
    latent_frames: int
    latent_height: int
    latent_width: int
    padding: int
    depth: int
    rows: int
    columns: int

    @property
    def loop_frames(self) -> int:
        """Latent frames in the loop: a whole number of patches."""
        return self.padding + self.latent_frames

    @property
    def video_tokens(self) -> int:
        return self.depth * self.rows * self.columns

    @property
    def pixels(self) -> tuple[int, int, int]:
        return self.height, self.width, self.num_frames

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.num_frames} frames"

    @classmethod
    def of(
        cls, variant: Variant, height: int | None, width: int | None, num_frames: int | None, any_frames: bool = False
    ) -> "VideoShape":  # fmt: skip
        """The shape for a model; None stands for the size that it was trained at.

        Args:
            any_frames: as the reference does, any number of frames is taken, and the decoder makes of it what it makes.

        Raises:
            InputError: a size that is not a positive multiple of the model's (16 pixels), or a number of frames that
                is not 8k + 1: the decoder would silently return another number.
        """
        height = variant.height if height is None else whole("height", height)
        width = variant.width if width is None else whole("width", width)
        num_frames = variant.num_frames if num_frames is None else whole("num_frames", num_frames)
        ratio, patch = variant.vae.spatial_ratio, variant.transformer.patch_size
        for name, value in (("height", height), ("width", width)):
            step = ratio * patch
            if value < step or value % step:
                near = min(max(step, (value + step // 2) // step * step), MAX_SIDE)
                raise InputError(
                    f"{name}={shown(value)} is not a positive multiple of {step}; the nearest that works is {near}."
                )
            if value > MAX_SIDE:
                raise InputError(
                    f"{name}={shown(value)} is more than {MAX_SIDE}, the most pixels that a video can have."
                )
        time = variant.vae.temporal_compression_ratio
        if num_frames < 1 or ((num_frames - 1) % (2 * time) and not any_frames):
            near = max(0, (num_frames - 1 + time) // (2 * time)) * 2 * time + 1
            raise InputError(
                f"num_frames={shown(num_frames)} is not of the form {2 * time}k + 1; the nearest that works is "
                f"{shown(near)}."
            )
        shape = cls.unchecked(variant, height, width, num_frames)
        if shape.video_tokens > MAX_TOKENS:
            raise InputError(
                f"height={height}, width={width} and num_frames={shown(num_frames)} are {shown(shape.video_tokens)} "
                f"tokens of video; at most {MAX_TOKENS} can be made at once."
            )
        return shape

    @classmethod
    def unchecked(cls, variant: Variant, height: int, width: int, num_frames: int) -> "VideoShape":
        """Without the checks: what the reference makes of any numbers."""
        config, ratio = variant.transformer, variant.vae.spatial_ratio
        patch, together = config.patch_size, config.patch_frames
        latent_frames = (num_frames - 1) // variant.vae.temporal_compression_ratio + 1
        return cls(
            height=height,
            width=width,
            num_frames=num_frames,
            latent_frames=latent_frames,
            latent_height=height // ratio,
            latent_width=width // ratio,
            padding=-latent_frames % together,
            depth=-(-latent_frames // together),
            rows=height // ratio // patch,
            columns=width // ratio // patch,
        )


def chunks(latent_frames: int) -> list[int]:
    """How many latent frames are decoded at a time: diffusers' 3 + 2 + 2 + ..., or 2 + 2 + ... for an even number."""
    if latent_frames < 2:
        return [latent_frames]
    return [2 + latent_frames % 2] + [2] * (latent_frames // 2 - 1)


def spans(latent_frames: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each chunk."""
    begin = 0
    for count in chunks(latent_frames):
        yield begin, begin + count
        begin += count
