"""Where a token is: rotary tables and additive positions, from the shape of the video alone (float32, on the CPU)."""

import torch
from torch import Tensor

from ..configs import TransformerConfig
from ..errors import InputError
from ..shapes import VideoShape


def _angles(positions: Tensor, dim: int) -> Tensor:
    frequencies = 1.0 / (10000 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    return torch.outer(positions, frequencies)  # [n, dim / 2]


def _spatial(size: int, base: int, resized: int) -> Tensor:
    start = round((base - resized) / 2.0)
    stop = start + resized
    return torch.linspace(start, stop * (size - 1) / size, size, dtype=torch.float32)


def rotary_tables(config: TransformerConfig, shape: VideoShape) -> tuple[Tensor, Tensor]:
    """cos and sin, each [V, D / 2]; empty [0, D / 2] for a model without rotary embedding.

    A quarter of a head's channels turns with time, three eighths each with row and column. Positions follow the
    reference pipelines: the grid is fitted into the grid that the model was trained at, centred, keeping its aspect;
    with patches over time (CogVideoX-1.5) it is counted from the corner.
    """
    if not config.use_rotary_positional_embeddings:
        empty = torch.empty(0, config.attention_head_dim // 2)
        return empty, empty
    dim, count = config.attention_head_dim, shape.depth
    time = _angles(torch.linspace(0, count * (count - 1) / count, count, dtype=torch.float32), dim // 4)
    row, column = (_angles(places, dim // 8 * 3) for places in _places(config, shape))
    grid = (count, shape.rows, shape.columns, -1)
    angles = torch.cat(
        (time[:, None, None].expand(grid), row[None, :, None].expand(grid), column[None, None].expand(grid)), dim=-1
    ).reshape(shape.video_tokens, -1)
    return angles.cos(), angles.sin()


def _places(config: TransformerConfig, shape: VideoShape) -> tuple[Tensor, Tensor]:
    """Where the rows and the columns are on the grid that the model was trained at."""
    rows, columns = shape.rows, shape.columns
    if config.patch_size_t is not None:
        return torch.arange(rows, dtype=torch.float32), torch.arange(columns, dtype=torch.float32)
    base_rows, base_columns = _trained_grid(config)
    if rows / columns > base_rows / base_columns:
        fitted = base_rows, round(base_rows / rows * columns)
    else:
        fitted = round(base_columns / columns * rows), base_columns
    return _spatial(rows, base_rows, fitted[0]), _spatial(columns, base_columns, fitted[1])


def _trained_grid(config: TransformerConfig) -> tuple[int, int]:
    return config.sample_height // config.patch_size, config.sample_width // config.patch_size


def _sincos(dim: int, positions: Tensor) -> Tensor:
    frequencies = 1.0 / 10000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim / 2.0))
    angles = torch.outer(positions.reshape(-1).to(torch.float64), frequencies)
    return torch.cat((angles.sin(), angles.cos()), dim=1).float()


def sincos_positions(config: TransformerConfig, shape: VideoShape) -> Tensor:
    """Fixed positions of the video tokens, [V, C] (as CogVideoX-2B: a quarter time, three quarters space)."""
    dim = config.inner_dim
    rows = torch.arange(shape.rows, dtype=torch.float32) / config.spatial_interpolation_scale
    columns = torch.arange(shape.columns, dtype=torch.float32) / config.spatial_interpolation_scale
    frames = torch.arange(shape.depth, dtype=torch.float32) / config.temporal_interpolation_scale
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    space_dim = 3 * dim // 4
    # The column comes first: diffusers' grid is (width, height).
    space = torch.cat((_sincos(space_dim // 2, x), _sincos(space_dim // 2, y)), dim=1)  # [rows * columns, 3C/4]
    time = _sincos(dim // 4, frames)  # [frames, C/4]
    parts = (
        time[:, None].expand(-1, space.shape[0], -1),
        space[None].expand(time.shape[0], -1, -1),
    )
    return torch.cat(parts, dim=-1).reshape(shape.video_tokens, dim)


def check_positions(config: TransformerConfig, shape: VideoShape) -> None:
    """Raises InputError for another height or width than learned positions were learned for, and for more than the
    rotary positions of CogVideoX-1.5 are counted to."""
    grid, ratio = _trained_grid(config), shape.height // shape.latent_height
    counted = config.patch_size_t is not None and config.use_rotary_positional_embeddings
    if counted and (shape.rows > grid[0] or shape.columns > grid[1]):
        most = [side * config.patch_size * ratio for side in grid]
        raise InputError(
            f"This checkpoint has positions for {most[0]}x{most[1]} (height x width) at most and cannot make "
            f"{shape.height}x{shape.width}; ask for less."
        )
    trained = (config.sample_height, config.sample_width)
    if config.use_learned_positional_embeddings and trained != (shape.latent_height, shape.latent_width):
        raise InputError(
            f"This checkpoint has learned positions for {trained[0] * ratio}x{trained[1] * ratio} (height x width) and "
            f"cannot make {shape.height}x{shape.width}; ask for its own size."
        )


def additive_positions(config: TransformerConfig, shape: VideoShape, learned: Tensor | None) -> Tensor | None:
    """What is added to the tokens, [T + V, C] (text first), or None for a model with rotary embedding only.

    Args:
        learned: the checkpoint's patch_embed.pos_embedding [1, T + V', C] where it has one. It holds for the size that
            the model was trained at. Another number of frames falls back to the fixed positions, as in diffusers.

    Raises:
        InputError: another height or width than the learned positions'.
    """
    if config.use_rotary_positional_embeddings and not config.use_learned_positional_embeddings:
        return None
    check_positions(config, shape)
    frames = (shape.latent_frames - 1) * config.temporal_compression_ratio + 1
    if learned is not None and frames == config.sample_frames:
        return learned[0]
    text = torch.zeros(config.max_text_seq_length, config.inner_dim)
    return torch.cat((text, sincos_positions(config, shape)))
