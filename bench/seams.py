"""`python -m consisid.bench.seams ENGINE`: what decoding in tiles costs in accuracy, and whether the tiles can be seen.

Two figures for every way of tiling, both against the untiled frames: the error, and the seam, which is the gradient of
that error across the lines where tiles begin and end, against its gradient elsewhere. An error without seams has 1.
The latents are smooth, so that a step would show. A decoder with random weights decodes them to no picture of
anything, but its tiles differ by their statistics as a trained one's do.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from consisid.engine import ConsisID
from consisid.engine.commands import run
from consisid.engine.decode import frames_in_order
from consisid.engine.errors import InputError
from consisid.engine.tiling import REFERENCE_OVERLAP, Tile, check_tile, cut

MODES = ("tiled-reference", "tiled", "exact")


@dataclass(frozen=True)
class Row:
    """One way of tiling against the untiled frames, which lie in [-1, 1]."""

    mode: str
    mean: float
    largest: float
    seam: float


def smooth_latents(frames: int, channels: int, height: int, width: int, seed: int) -> Tensor:
    """[1, F, C, h, w] of unit variance: a few slow waves, the same for all frames."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, channels, 4, 6, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    return (smooth / smooth.std())[:, None].expand(-1, frames, -1, -1, -1).contiguous()


def borders(mode: str, size: int, tile: int, axis: int, ratio: int) -> list[int]:
    """Pixels at which a tile begins to count, or ceases to, along an axis."""
    if mode != "tiled-reference":
        spans = cut(size, tile)
        lines = [x for s in spans for x in (s.begin * ratio, s.end * ratio)]
    else:
        extent = int(tile * ratio * REFERENCE_OVERLAP[axis])
        step = tile * ratio - extent
        count = -(-size // max(1, int(tile * (1 - REFERENCE_OVERLAP[axis]))))
        lines = [x for i in range(1, count) for x in (i * step, i * step + extent)]
    return sorted({x for x in lines if 0 < x < size * ratio})


def seam(difference: Tensor, lines: tuple[list[int], list[int]]) -> float:
    """Mean gradient of frames - untiled, [n, H, W, 3], across the lines against elsewhere."""
    on, off = [], []
    for axis, where in enumerate(lines, start=1):
        gradient = difference.diff(dim=axis).abs().mean(dim=[d for d in range(4) if d != axis])
        at = torch.zeros(len(gradient), dtype=torch.bool)
        at[[x - 1 for x in where]] = True
        on.append(gradient[at])
        off.append(gradient[~at])
    across, elsewhere = torch.cat(on), torch.cat(off).mean()
    return (across.mean() / elsewhere).item() if len(across) and elsewhere > 0 else 1.0


@torch.no_grad()
def measure(engine: ConsisID, tile: Tile, latents: Tensor) -> tuple[list[Row], dict[str, Tensor]]:
    """The rows, and the frames [n, H, W, 3] in [-1, 1] of every mode and of "whole"."""
    shape, ratio = engine.shape, engine.variant.vae.spatial_ratio
    networks = engine.networks(shape)

    def frames(mode: str) -> Tensor:
        chunks = frames_in_order(networks, latents, lambda x: x.permute(0, 2, 3, 1).float(), mode, tile)
        return torch.cat(list(chunks))

    found, rows = {"whole": frames("whole")}, []
    for mode in MODES:
        found[mode] = frames(mode)
        if found[mode].shape != found["whole"].shape:
            raise InputError(
                f"tile={tile}: with it diffusers returns frames of another size; use multiples of 6 and 5."
            )
        difference = found[mode] - found["whole"]
        lines = (
            borders(mode, shape.latent_height, tile[0], 0, ratio),
            borders(mode, shape.latent_width, tile[1], 1, ratio),
        )
        rows.append(Row(mode, difference.abs().mean().item(), difference.abs().max().item(), seam(difference, lines)))
    return rows, found


def picture(frames: dict[str, Tensor], path: Path) -> None:
    """Above the last frames side by side: untiled, diffusers' tiles, ours. Below what they differ by from the untiled
    one, on grey."""
    whole = frames["whole"][-1]
    span = whole.abs().flatten()[::7].quantile(0.98)  # random weights make a few glaring pixels
    columns = []
    for mode in ("whole", "tiled-reference", "tiled"):
        frame = frames[mode][-1]
        columns.append(torch.cat((frame / span, (frame - whole) / span)))
    pixels = ((torch.cat(columns, dim=1) * 0.5 + 0.5).clamp(0, 1) * 255).byte().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, optimize=True)


def report(options: argparse.Namespace) -> None:
    """The work of the command."""
    engine = ConsisID.open(options.engine, options.device)
    shape, vae = engine.shape, engine.variant.vae
    if options.tile is None and (shape.latent_height, shape.latent_width) == (1, 1):
        raise InputError("A frame of one latent pixel cannot be cut; build an engine for a larger video.")
    height, width = check_tile(tuple(options.tile) if options.tile else None, vae)
    if not options.tile:
        height, width = -(-height // 6) * 6, -(-width // 5) * 5  # other sizes diffusers does not put together right
    tile = height, width
    frames = min(5, shape.latent_frames)
    latents = smooth_latents(frames, vae.latent_channels, shape.latent_height, shape.latent_width, options.seed)
    rows, found = measure(engine, tile, latents.to(engine.device, engine.dtype))
    print(f"{shape}, {frames} latent frames, tiles of {tile[0]}x{tile[1]} latent pixels; frames lie in [-1, 1]\n")
    print("| decode | mean error | largest error | seam |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.mode} | {row.mean:.2e} | {row.largest:.2e} | {row.seam:.2f} |")
    if options.picture:
        picture(found, options.picture)
        print(f"\n{options.picture}")


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser("python -m consisid.bench.seams", description="Error and seams of decoding in tiles.")
    p.add_argument("engine", type=Path, help="engine folder made by consisid-build")
    p.add_argument("--device", help="default: what the engine was built for")
    p.add_argument("--tile", type=int, nargs=2, metavar=("H", "W"), help="of a tile in latent pixels")
    p.add_argument("--seed", type=int, default=0, help="of the latents")
    p.add_argument("--picture", type=Path, help="also save the frames side by side")
    options = p.parse_args(arguments)
    return run("seams", lambda: report(options))


if __name__ == "__main__":
    sys.exit(main())
