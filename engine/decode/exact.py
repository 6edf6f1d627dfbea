"""Decoding in tiles whose GroupNorms see the statistics of the whole frame: the untiled result, in a tile's memory.

Layer by layer. Feature maps lie on the host; a step reads them a tile at a time with a border of one pixel,
normalises with the statistics that the step before gathered while it wrote them, convolves and writes back. No
convolution is computed twice: the arithmetic is that of the untiled decode, and norm and SiLU of the borders. What it
costs is the way to the host and back, see `host_bytes`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.causal_conv import CausalConv, conv3d
from ..networks.vae_decoder import Decoder, FirstChunk, SpatialNorm, UpResnet, Upsample
from ..runtime.executor import GraphExecutor
from ..shapes import spans
from .chunks import Convert, Host, empty_module, named
from .tile import Tile

Rows = tuple[int, int]
"""[begin, end) of the rows of the latents."""


class Moments:
    """Mean and variance per group of what has been added, by Chan, Golub and LeVeque's formula in float64."""

    def __init__(self, groups: int):
        self.groups = groups
        self.clear()

    def clear(self) -> None:
        """As if nothing had been added."""
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0  # sum of squared deviations

    def add(self, x: Tensor) -> None:
        """x [1, C, F, H, W]."""
        variance, mean = torch.var_mean(x.reshape(self.groups, -1).float(), dim=1, correction=0)
        new = x.numel() // self.groups
        self.join(new, mean.double(), variance.double() * new)

    def join(self, new: int, mean: Tensor, square: Tensor) -> None:
        """`new` values more in each group, with their mean and sum of squared deviations."""
        total = self.count + new
        delta = mean - self.mean
        self.mean = self.mean + delta * (new / total)
        self.square = self.square + square + delta * delta * (self.count * new / total)
        self.count = total

    def of_channels(self, channels: int, eps: float) -> tuple[Tensor, Tensor]:
        """Mean and 1 / standard deviation, float32 [C, 1, 1, 1]."""
        mean, square = torch.as_tensor(self.mean), torch.as_tensor(self.square)
        each = channels // self.groups
        values = mean, (square / self.count + eps).rsqrt()
        first, second = (v.float().repeat_interleave(each)[:, None, None, None] for v in values)
        return first, second


@dataclass
class Map:
    """Features [1, C, F, H, W] on the host, `scale` pixels to a latent pixel, and their moments; `top` is the row of
    the frame that `data` begins with."""

    data: Tensor
    scale: int
    moments: Moments
    top: int = 0

    def part(self, rows: slice, columns: slice) -> Tensor:
        """Of the frame's rows and columns."""
        return self.data[..., rows.start - self.top : rows.stop - self.top, columns]


@dataclass(frozen=True)
class Area:
    """A tile in pixels of some map: inside, and with a border of one pixel where the frame goes on."""

    top: int
    bottom: int
    left: int
    right: int
    height: int
    width: int

    @property
    def inside(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def outside(self) -> tuple[slice, slice]:
        return (
            slice(max(0, self.top - 1), min(self.height, self.bottom + 1)),
            slice(max(0, self.left - 1), min(self.width, self.right + 1)),
        )

    @property
    def zeros(self) -> tuple[int, int, int, int]:
        """Rows and columns outside the frame: left, right, top, bottom, as F.pad takes them."""
        edges = self.left == 0, self.right == self.width, self.top == 0, self.bottom == self.height
        return int(edges[0]), int(edges[1]), int(edges[2]), int(edges[3])


def areas(height: int, width: int, tile: Tile, scale: int, rows: Rows | None = None) -> Iterator[Area]:
    """The tiles of latents of height x width, or of some of their rows, at `scale`."""
    begin, end = rows or (0, height)
    for y in range(begin, end, tile[0]):
        for x in range(0, width, tile[1]):
            y1, x1 = min(end, y + tile[0]), min(width, x + tile[1])
            yield Area(y * scale, y1 * scale, x * scale, x1 * scale, height * scale, width * scale)


def latent_frame(frames: int, latent_frames: int) -> list[int]:
    """Which latent frame each frame of a map is conditioned on; see kernels/group_norm_silu.py, upsample."""
    if frames > 1 and frames % 2:
        return [0] + [1 + i * (latent_frames - 1) // (frames - 1) for i in range(frames - 1)]
    return [i * latent_frames // frames for i in range(frames)]


def normalise(norm: SpatialNorm, x: Tensor, source: Map, latents: Tensor, rows: slice, columns: slice) -> Tensor:
    """SpatialNorm of the part rows x columns of a map, with the moments of all of it."""
    group, scale = norm.norm_layer, source.scale
    mean, rstd = source.moments.of_channels(x.shape[1], group.eps)
    index = [
        torch.tensor([i // scale - part.start // scale for i in range(part.start, part.stop)], device=x.device)
        for part in (rows, columns)
    ]
    low = latents[..., rows.start // scale : -(-rows.stop // scale), columns.start // scale : -(-columns.stop // scale)]
    low = low.index_select(2, torch.tensor(latent_frame(x.shape[2], latents.shape[2]), device=x.device))

    def spread(conditioning: nn.Module) -> Tensor:
        return conditioning(low).index_select(3, index[0]).index_select(4, index[1])

    wide = group.weight.float()[:, None, None, None], group.bias.float()[:, None, None, None]
    y = (x.float() - mean) * (rstd * wide[0]) + wide[1]
    return F.silu(y * spread(norm.conv_y) + spread(norm.conv_b)).to(x.dtype)


class ExactDecoder:
    """The decoder over maps on the host, for latents of height x width in chunks of time.

    Args:
        rows: of the latents whose frames are made; None for all.
    """

    def __init__(self, networks: GraphExecutor, host: Host, size: Tile, tile: Tile, rows: Rows | None = None):
        self._networks, self._module = networks, empty_module(networks, FirstChunk)
        self.decoder, self.groups = self._module.decoder, networks.variant.vae.norm_num_groups
        self.host, self.size, self.tile, self.rows = host, size, tile, rows or (0, size[0])
        self._caches: dict[nn.Module, Map] = {}
        self.latents = torch.empty(0)

    def decode(self, latents: Tensor, last: bool, convert: Convert) -> Tensor:
        """Frames [n, H, W, 3] on the host, of its rows, from latents [1, 16, n, h, w] of the next chunk."""

        def chunk(inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
            self._module.load_state_dict(named(self._module, weights), assign=True)
            return self._frames(inputs[0], last, convert)

        return self._networks.under({"decode_first": chunk}).one("decode_first", latents)

    def meet(self, features: Map) -> None:
        """A map is complete as far as the rows of this decoder go."""

    def _frames(self, latents: Tensor, last: bool, convert: Convert) -> Tensor:
        decoder, self.latents = self.decoder, latents
        x = self._gather(self._convolve(decoder.conv_in, Map(latents, 1, Moments(1)), None, last), 1)
        for block in (decoder.mid_block, *decoder.up_blocks):
            for resnet in block.resnets:
                h = self._gather(self._convolve(resnet.conv1, x, resnet.norm1, last), x.scale)
                x = self._gather(self._convolve(resnet.conv2, h, resnet.norm2, last, (resnet, x)), x.scale)
            for upsample in block.upsamplers:
                x = self._gather(self._upsample(upsample, x), 2 * x.scale)
        frames: list[Tensor] = []
        for area, y in self._convolve(decoder.conv_out, x, decoder.norm_out, last):
            part = convert(y[0].transpose(0, 1))
            begin, end = (row * x.scale for row in self.rows)
            if not frames:
                frames.append(self.host.empty((len(part), end - begin, area.width, 3), part.dtype))
            self.host.put(frames[0][:, area.top - begin : area.bottom - begin, area.inside[1]], part)
        return frames[0]

    def _gather(self, pieces: Iterator[tuple[Area, Tensor]], scale: int) -> Map:
        """A map of the tiles of a step, with their moments."""
        found: list[Map] = []
        for area, y in pieces:
            if not found:
                found.append(self._map(y, scale, area))
            self.host.put(found[0].part(*area.inside), y)
            found[0].moments.add(y)
        self.meet(found[0])
        return found[0]

    def _map(self, like: Tensor, scale: int, area: Area) -> Map:
        """An empty map of the decoder's rows, and of one more on each side where the frame goes on."""
        top, bottom = max(0, self.rows[0] * scale - 1), min(area.height, self.rows[1] * scale + 1)
        data = self.host.empty((*like.shape[:3], bottom - top, area.width), like.dtype)
        return Map(data, scale, Moments(self.groups), top)

    def _convolve(
        self,
        conv: CausalConv,
        source: Map,
        norm: SpatialNorm | None,
        last: bool,
        residual: tuple[UpResnet, Map] | None = None,
    ) -> Iterator[tuple[Area, Tensor]]:
        """Tile by tile a causal convolution of the normalised source, plus a residual."""
        lead, host, old, new = conv.lead, self.host, self._caches.pop(conv, None), None
        for area in areas(*self.size, self.tile, source.scale, self.rows):
            x = host.take(source.part(*area.outside))
            if new is None and not last:
                new = self._caches[conv] = self._map(x[:, :, :1].expand(-1, -1, lead, -1, -1), source.scale, area)
            if norm is not None:
                x = normalise(norm, x, source, self.latents, *area.outside)
            before = x[:, :, :1].expand(-1, -1, lead, -1, -1) if old is None else host.take(old.part(*area.outside))
            x = torch.cat((before, x), dim=2)
            if new is not None:  # with the border: what is beyond the rows of this decoder no other tile writes
                host.put(new.part(*area.outside), x[:, :, -lead:])
            x = F.pad(x, area.zeros)  # one pixel more than the tile on every side
            y = conv3d(x, conv.conv.weight, conv.conv.bias)
            if residual is not None:
                y += residual[0].shortcut(host.take(residual[1].part(*area.inside)))
            yield area, y

    def _upsample(self, upsample: Upsample, source: Map) -> Iterator[tuple[Area, Tensor]]:
        small, large = (areas(*self.size, self.tile, source.scale * factor, self.rows) for factor in (1, 2))
        for area, result in zip(small, large, strict=True):
            yield result, upsample.padded(F.pad(self.host.take(source.part(*area.outside)), area.zeros))


def exact(networks: GraphExecutor, latents: Tensor, tile: Tile, convert: Convert) -> Iterator[Tensor]:
    """Frames [n, H, W, 3] on the host, chunk by chunk, from latents [1, F, 16, h, w]."""
    count, size = latents.shape[1], (latents.shape[3], latents.shape[4])
    run = ExactDecoder(networks, Host(latents.device), size, tile)
    for begin, end in spans(count):
        yield run.decode(latents[:, begin:end].transpose(1, 2).contiguous(), end == count, convert)


def host_bytes(decoder: Decoder, size: Tile, latent_frames: int, tile: Tile, width: int) -> int:
    """What the exact decode moves between device and host, frames apart, at `width` bytes a value.

    A map of C channels, F frames and P pixels is written once (C F P) and read once for each convolution of it, with
    the borders (C F R), where R is the pixels of all tiles with a border of one where the frame goes on; a residual is
    read once more (C F P). What a convolution hands on is written and read by the next chunk (2 C R each). The
    arithmetic is the untiled decode's. 49 frames of 480x720 in bfloat16, tiles of 30x45: 194 GB.
    """

    def pixels(scale: int) -> tuple[int, int]:
        each = list(areas(*size, tile, scale))
        outside = sum((y.stop - y.start) * (x.stop - x.start) for y, x in (area.outside for area in each))
        return size[0] * size[1] * scale**2, outside

    total, ends = 0, list(spans(latent_frames))
    for begin, end in ends:
        frames, scale = end - begin, 1
        handed = (2 if begin else 0, 2 if end < ends[-1][1] else 0)

        def step(conv: CausalConv, residual: int = 0) -> int:
            inputs, outputs = conv.conv.in_channels, conv.conv.out_channels
            plain, bordered = pixels(scale)  # noqa: B023
            moved = inputs * (frames + sum(handed)) * bordered  # noqa: B023
            return moved + (outputs + residual) * frames * plain  # noqa: B023

        total += step(decoder.conv_in)
        for block in (decoder.mid_block, *decoder.up_blocks):
            for resnet in block.resnets:
                total += step(resnet.conv1) + step(resnet.conv2, resnet.conv1.conv.in_channels)
            for upsample in block.upsamplers:
                channels = upsample.conv.in_channels
                total += channels * frames * pixels(scale)[1]
                frames, scale = upsample.frames(frames), 2 * scale
                total += channels * frames * pixels(scale)[0]
        total += step(decoder.conv_out) - 3 * frames * pixels(scale)[0]
    return total * width
