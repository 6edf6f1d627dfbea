"""How devices share the work: which of them takes which half of guidance, which tokens and which rows of a frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import Any

from ..errors import InputError, shown
from ..manifest import MOST_DEVICES
from ..shapes import VideoShape
from ..variants import Variant

AXES = ("cfg", "ulysses", "ring")


@dataclass(frozen=True)
class Share:
    """What a device has of the tokens.

    Attributes:
        text, video: spans of the tokens of each.
        size: rows that its tensors have for each, one more than tokens where these do not divide: those of all devices
            have one shape.
        length: of the text.
    """

    text: tuple[int, int]
    video: tuple[int, int]
    size: tuple[int, int]
    length: int

    @property
    def count(self) -> int:
        """Tokens, padding apart."""
        return self.text[1] - self.text[0] + self.video[1] - self.video[0]

    @property
    def rows(self) -> int:
        """Rows of its tensors: the text's, then the video's."""
        return sum(self.size)

    @property
    def places(self) -> tuple[slice, slice]:
        """Where among its rows the tokens are."""
        text, video = self.text[1] - self.text[0], self.video[1] - self.video[0]
        return slice(0, text), slice(self.size[0], self.size[0] + video)

    @property
    def spans(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Its tokens among those of a sample, of which the text's come first."""
        return self.text, (self.length + self.video[0], self.length + self.video[1])


@dataclass(frozen=True)
class Mesh:
    """Devices as a box. Ranks count up along ring, then ulysses, then cfg: the first device is rank 0.

    Attributes:
        cfg: 2 gives the halves of guidance to different devices, 1 keeps them together.
        ulysses: devices that exchange tokens for heads around attention (arXiv:2309.14509); it divides the heads.
        ring: devices whose keys and values go around (arXiv:2310.01889), for any number of heads.
        transport: what they send by, see exchange.TRANSPORTS; for plans.
    """

    cfg: int = 1
    ulysses: int = 1
    ring: int = 1
    transport: str = ""

    @property
    def size(self) -> int:
        """Devices."""
        return self.cfg * self.sequence

    @property
    def sequence(self) -> int:
        """Devices that share the tokens of a sample."""
        return self.ulysses * self.ring

    def __str__(self) -> str:
        return ",".join(f"{name}={getattr(self, name)}" for name in AXES if getattr(self, name) > 1) or "cfg=1"

    @classmethod
    def parse(cls, text: str, heads: int) -> "Mesh":
        """A mesh such as "cfg=2,ulysses=3".

        Raises:
            InputError: another text; an axis that cannot be.
        """
        found: dict[str, Any] = {}
        for part in text.split(",") if isinstance(text, str) else [""]:
            name, _, number = part.strip().partition("=")
            if name not in AXES or name in found or not number.isdecimal() or not 1 <= int(number) <= MOST_DEVICES:
                raise InputError(f'mesh={shown(text)} is none; give the axes {", ".join(AXES)}, as "cfg=2,ulysses=3".')
            found[name] = int(number)
        mesh = cls(**found)
        if mesh.cfg > 2:
            raise InputError(f"mesh={shown(text)}: guidance has two halves, so cfg is 1 or 2.")
        if heads % mesh.ulysses:
            raise InputError(
                f"mesh={shown(text)}: ulysses has to divide the {heads} heads; use ring for the other devices."
            )
        return mesh

    @classmethod
    def choose(cls, devices: int, heads: int) -> "Mesh":
        """The rule: both halves of guidance where devices are even in number, since that exchanges least; then Ulysses
        as far as the heads divide, and a ring for what is left."""
        cfg = 2 if devices % 2 == 0 else 1
        ulysses = gcd(devices // cfg, heads)
        return cls(cfg, ulysses, devices // cfg // ulysses)

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """Of a rank along cfg, ulysses and ring."""
        return rank // self.sequence, rank // self.ring % self.ulysses, rank % self.ring

    def rank(self, cfg: int, ulysses: int, ring: int) -> int:
        return (cfg * self.ulysses + ulysses) * self.ring + ring

    def shares(self, variant: Variant, shape: VideoShape) -> list[Share]:
        """What each device of a sequence has of the tokens, by its place in it."""
        text, video, parts = variant.transformer.max_text_seq_length, shape.video_tokens, self.sequence
        size = -(-text // parts), -(-video // parts)
        return [Share(t, v, size, text) for t, v in zip(cut(text, parts), cut(video, parts), strict=True)]

    def block_bytes(self, rank: int, shares: Sequence[Share], samples: int, heads: int, dim: int, width: int) -> int:
        """What a rank sends in one block, bytes, of `samples` samples in numbers of `width` bytes.

        With n tokens of its own, N of its Ulysses group and u devices in that, r in the ring:
        to the others of its group, heads / u of q, k and v of its own tokens, and of the attention of theirs, that is
        samples * heads / u * dim * width * (3 * n * (u - 1) + N - n); around the ring, r - 1 times the keys and values
        of a group, samples * heads / u * dim * width * 2 * (those of the r - 1 groups that pass through it).
        """
        _, mine, turn = self.coordinates(rank)
        each = samples * heads // self.ulysses * dim * width
        groups = [sum(shares[self.rank(0, i, ring)].count for i in range(self.ulysses)) for ring in range(self.ring)]
        own = shares[self.rank(0, mine, turn)].count
        around = sum(groups[(turn - step) % self.ring] for step in range(self.ring - 1))
        return each * (3 * own * (self.ulysses - 1) + groups[turn] - own + 2 * around)

    def given_bytes(self, shares: Sequence[Share], samples: int, layers: int, dim: int, width: int) -> int:
        """What the first device hands out for one prediction, bytes, with `samples` samples on each device: to every
        other its rows of the hidden state, samples * rows * dim * width, and 12 * layers * dim * width of modulation.
        """
        return sum(
            (samples * shares[rank % self.sequence].rows + 12 * layers) * dim * width for rank in range(1, self.size)
        )


def cut(length: int, parts: int) -> list[tuple[int, int]]:
    """Spans of `length` things, as even as can be."""
    ends = [length * i // parts for i in range(parts + 1)]
    return list(pairwise(ends))
