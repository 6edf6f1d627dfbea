"""What decoding in tiles costs, and whether one sees them: `python tests/support/seams.py ENGINE`.

Two figures for every way of tiling, both against the untiled frames: the error, and the seam. For every band in which
two tiles are blended, that is the largest gradient of the error across one of its lines, the first and the last
included; added over the bands, in units of the untiled frames' own mean gradient. 1 is one line across the frame as
strong as what the picture is made of, 0 is no seam. The unit is not the error's gradient elsewhere, by which frames
that are wrong everywhere would have no seam.
The latents are smooth, so that a step would show. A decoder with random weights decodes them to no picture of
anything, but its tiles differ by their statistics as a trained one's do.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from consisid.bench.core.tables import table
from consisid.engine import ConsisID
from consisid.engine.decode.diffusers_tiles import REFERENCE_OVERLAP
from consisid.engine.decode.frames import frames_in_order
from consisid.engine.decode.tile import Tile, check_tile, cut
from consisid.engine.errors import InputError
from consisid.engine.util.cli import run

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


def bands(mode: str, size: int, tile: int, axis: int, ratio: int) -> list[tuple[int, int]]:
    """Pixels [begin, end) along an axis in which two tiles are blended."""
    if mode != "tiled-reference":
        return [(span.begin * ratio, (span.begin + span.rise) * ratio) for span in cut(size, tile)[1:]]
    extent = int(tile * ratio * REFERENCE_OVERLAP[axis])
    count = -(-size // max(1, int(tile * (1 - REFERENCE_OVERLAP[axis]))))
    begins = [i * (tile * ratio - extent) for i in range(1, count)]
    return [(begin, min(begin + extent, size * ratio)) for begin in begins]


def gradients(frames: Tensor, axis: int) -> Tensor:
    """Mean difference of neighbours along an axis of [n, H, W, 3], by position along it."""
    return frames.diff(dim=axis).abs().mean(dim=[d for d in range(4) if d != axis])


def seam(frames: Tensor, whole: Tensor, blended: tuple[list[tuple[int, int]], list[tuple[int, int]]]) -> float:
    """The seam of frames [n, H, W, 3] against the untiled ones; `blended` are the bands of rows and of columns."""
    unit = torch.stack([gradients(whole, axis).mean() for axis in (1, 2)]).mean()
    worst = [
        gradients(frames - whole, axis)[begin - 1 : end].max()
        for axis, found in enumerate(blended, start=1)
        for begin, end in found
    ]
    return (torch.stack(worst).sum() / unit).item() if worst else 0.0


@torch.no_grad()
def measure(engine: ConsisID, tile: Tile, latents: Tensor) -> tuple[list[Row], dict[str, Tensor]]:
    """The rows, and the frames [n, H, W, 3] in [-1, 1] of every mode and of "whole"."""
    shape, ratio = engine.shape, engine.variant.vae.spatial_ratio
    networks = engine.networks(shape)

    def frames(mode: str) -> Tensor:
        chunks = frames_in_order(networks, latents, lambda x: x.permute(0, 2, 3, 1).float(), mode, tile)
        return torch.cat(list(chunks))

    found, rows = {"whole": frames("whole")}, []
    sides = shape.latent_height, shape.latent_width
    for mode in MODES:
        found[mode] = frames(mode)
        if found[mode].shape != found["whole"].shape:
            raise InputError(
                f"tile={tile}: with it diffusers returns frames of another size; use multiples of 6 and 5."
            )
        rows_blended, columns_blended = (bands(mode, sides[axis], tile[axis], axis, ratio) for axis in (0, 1))
        error = (found[mode] - found["whole"]).abs()
        seams = seam(found[mode], found["whole"], (rows_blended, columns_blended))
        rows.append(Row(mode, error.mean().item(), error.max().item(), seams))
    return rows, found


def picture(frames: dict[str, Tensor], path: Path) -> None:
    """Above the last frames side by side: untiled, diffusers' tiles, ours. Below what they differ by from the untiled
    one, on grey. Both in units of what 98 % of the untiled frame's values lie within."""
    from matplotlib.figure import Figure

    whole = frames["whole"][-1]
    span = whole.abs().flatten()[::7].quantile(0.98)  # random weights make a few glaring pixels
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for column, name in enumerate(("untiled", "diffusers' tiles", "ours")):
        frame = frames[("whole", *MODES)[column]][-1]
        for row, (shown, what) in enumerate(((frame, name), (frame - whole, f"{name} - untiled"))):
            axes[row, column].imshow((shown / span * 0.5 + 0.5).clamp(0, 1).cpu().numpy())
            axes[row, column].set(title=what, xlabel="x in pixels", ylabel="y in pixels")
            axes[row, column].label_outer()
    figure.supxlabel(f"colours: -{span:.2f} to {span:.2f}, grey is 0; frames are meant to lie in [-1, 1]", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def work(options: argparse.Namespace) -> None:
    engine = ConsisID.open(options.engine, options.device)
    shape, vae = engine.shape, engine.variant.vae
    if options.tile is None and (shape.latent_height, shape.latent_width) == (1, 1):
        raise InputError("A frame of one latent pixel cannot be cut; build an engine for a larger video.")
    height, width = check_tile(tuple(options.tile) if options.tile else None, vae)
    if not options.tile:
        height, width = -(-height // 6) * 6, -(-width // 5) * 5  # other sizes diffusers does not put together right
    frames = min(5, shape.latent_frames)
    latents = smooth_latents(frames, vae.latent_channels, shape.latent_height, shape.latent_width, options.seed)
    rows, found = measure(engine, (height, width), latents.to(engine.device, engine.dtype))
    print(f"{shape}, {frames} latent frames, tiles of {height}x{width} latent pixels; frames lie in [-1, 1]\n")
    cells = [(row.mode, f"{row.mean:.2e}", f"{row.largest:.2e}", f"{row.seam:.2f}") for row in rows]
    print(*table(("decode", "mean error", "largest error", "seam"), cells), sep="\n")
    if options.picture:
        picture(found, options.picture)
        print(f"\n{options.picture}")


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser("seams", description="Error and seams of tiles.")
    p.add_argument("engine", type=Path, help="engine folder made by consisid-build")
    p.add_argument("--device", help="default: what the engine was built for")
    p.add_argument("--tile", type=int, nargs=2, metavar=("H", "W"), help="of a tile in latent pixels")
    p.add_argument("--seed", type=int, default=0, help="of the latents")
    p.add_argument("--picture", type=Path, help="also save the frames side by side")
    options = p.parse_args(arguments)
    return run("seams", lambda: work(options))


if __name__ == "__main__":
    sys.exit(main())
