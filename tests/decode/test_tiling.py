"""Tiles: diffusers' for parity, ours blended without seams, and the mode with the whole frame's statistics."""

from itertools import pairwise

import pytest
import torch
from support.autoencoders import SMALL, decoding, diffusers_vae, random_config, random_latents
from support.people import random_identity

from consisid.engine.decode.chunks import Host
from consisid.engine.decode.diffusers_tiles import check_reference, encode_reference
from consisid.engine.decode.exact import ExactDecoder, host_bytes
from consisid.engine.decode.frames import finish, frames_in_order
from consisid.engine.decode.tile import cut
from consisid.engine.errors import InputError
from consisid.engine.networks.vae_decoder import FirstChunk
from consisid.engine.shapes import VideoShape, spans
from consisid.engine.variants import PREVIEW, TINY

pytestmark = pytest.mark.slow

REFERENCE, EXACT = 1e-4, 1e-5
CONFIGS = [pytest.param(SMALL, id="small"), *(pytest.param(random_config(s), id=f"random{s}") for s in (1, 2))]


def plain(frames: torch.Tensor) -> torch.Tensor:
    """Unclamped, so that no error hides."""
    return frames.permute(0, 2, 3, 1)


def decode(config, latents, mode=None, tile=None):
    return torch.cat(list(frames_in_order(decoding(config), latents, plain, mode, tile)))


def error(ours, theirs) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()


def diffusers_decode(config, latents, tile=None):
    vae = diffusers_vae(config)
    if tile:
        vae.enable_tiling(tile[0] * config.spatial_ratio, tile[1] * config.spatial_ratio)
    try:
        return vae.decode(latents.transpose(1, 2)).sample[0].permute(1, 2, 3, 0)
    finally:
        vae.disable_tiling()


# The last has a last column that is narrower than the blended part, the third nothing to cut.
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("size", "tile"), [((5, 12, 9), (6, 6)), ((4, 7, 10), (6, 5)), ((3, 5, 6), (6, 6)), ((1, 11, 11), (6, 10))]
)
def test_reference_tiling_is_diffusers(config, size, tile):
    latents = random_latents(config, *size)
    ours = decode(config, latents, "tiled-reference", tile)
    assert error(ours, diffusers_decode(config, latents, tile)) < REFERENCE


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("size", "tile"), [((12, 9), (6, 6)), ((7, 10), (6, 5)), ((5, 6), (6, 6)), ((13, 11), (6, 10))]
)
def test_reference_tiling_of_the_encoder_is_diffusers(config, size, tile):
    ratio, vae = config.spatial_ratio, diffusers_vae(config)
    frame = torch.rand(1, 3, 1, size[0] * ratio, size[1] * ratio, generator=torch.Generator().manual_seed(2)) * 2 - 1
    vae.enable_tiling(tile[0] * ratio, tile[1] * ratio)
    try:
        theirs = vae.encode(frame).latent_dist.parameters
    finally:
        vae.disable_tiling()
    assert error(encode_reference(decoding(config), frame, tile), theirs) < REFERENCE
    if size != (5, 6):  # there was something to cut
        assert error(vae.encode(frame).latent_dist.parameters[..., :1, :1], theirs[..., :1, :1]) > REFERENCE


def test_slicing_is_diffusers():
    """With enable_slicing diffusers decodes the videos of a batch one by one; here they always are."""
    vae, videos = diffusers_vae(SMALL), torch.cat([random_latents(SMALL, 3, 5, 6, seed=s) for s in (1, 2)])
    vae.enable_slicing()
    try:
        theirs = vae.decode(videos.transpose(1, 2)).sample.transpose(1, 2)
    finally:
        vae.disable_slicing()
    ours = [torch.as_tensor(frames) for frames in finish(decoding(SMALL), videos, "pt")]
    for got, right in zip(ours, theirs, strict=True):
        assert error(got, (right * 0.5 + 0.5).clamp(0, 1)) < REFERENCE


def test_the_default_tile_is_diffusers():
    latents = random_latents(SMALL, 2, 7, 10)
    vae = diffusers_vae(SMALL)
    vae.enable_tiling(SMALL.sample_height // 2, SMALL.sample_width // 2)
    expected = vae.decode(latents.transpose(1, 2)).sample[0].permute(1, 2, 3, 0)
    vae.disable_tiling()
    assert error(decode(SMALL, latents, "tiled-reference"), expected) < REFERENCE


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("size", "tile"), [((5, 8, 9), (4, 4)), ((4, 6, 11), (5, 7)), ((3, 9, 5), (4, 9))])
def test_exact_is_untiled(config, size, tile):
    latents = random_latents(config, *size)
    whole = decode(config, latents)
    assert error(decode(config, latents, "exact", tile), whole) < EXACT
    assert error(decode(config, latents, "tiled", tile), whole) > 100 * EXACT  # there was something to get right


@pytest.mark.parametrize("size", range(4, 40))
@pytest.mark.parametrize("tile", [4, 5, 7, 16])
def test_tiles_cover_an_axis(size, tile):
    """Every pixel belongs to one tile, or to two that are blended; weights add up to one."""
    total, found = torch.zeros(size), cut(size, tile)
    for before, after in pairwise(found):
        assert before.end - before.fall == after.begin
        assert before.fall == after.rise > 0
    for span in found:
        assert span.start <= span.begin
        assert span.end <= span.stop
        assert span.rise + span.fall <= span.end - span.begin
        weight = torch.ones(span.end - span.begin)
        weight[: span.rise] = (torch.arange(span.rise) + 0.5) / max(1, span.rise)
        weight[len(weight) - span.fall :] = 1 - (torch.arange(span.fall) + 0.5) / max(1, span.fall)
        total[span.begin : span.end] += weight
    assert torch.allclose(total, torch.ones(size))
    assert len({span.stop - span.start for span in found}) == 1


def test_a_tile_that_holds_the_frame_changes_nothing():
    latents = random_latents(SMALL, 5, 5, 6)
    whole = decode(SMALL, latents)
    for mode in ("tiled", "tiled-reference", "exact"):
        assert error(decode(SMALL, latents, mode, (5, 6)), whole) < EXACT, mode


def test_blending_is_where_the_tiles_meet():
    """A constant colour decoded by a decoder that only copies: the result is constant, wherever it was cut."""
    latents = torch.ones(1, 3, SMALL.latent_channels, 9, 13) * 0.3
    for mode in ("tiled", "tiled-reference"):
        networks = decoding(SMALL)

        class Copy:
            def __init__(self, *arguments):
                self.latents = latents
                self.host = Host(torch.device("cpu"))

            def __call__(self, span, rows, columns):
                part = self.latents[0, slice(*span), :3, rows, columns]
                return torch.nn.functional.interpolate(part, scale_factor=float(SMALL.spatial_ratio))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("consisid.engine.decode.blended.TileDecoder", Copy)
            patch.setattr("consisid.engine.decode.diffusers_tiles.TileDecoder", Copy)
            frames = torch.cat(list(frames_in_order(networks, latents, plain, mode, (5, 6))))
        assert torch.allclose(frames, torch.full_like(frames, 0.3), atol=1e-6), mode


@pytest.mark.parametrize(("size", "tile"), [((5, 8, 9), (4, 4)), ((4, 6, 11), (5, 7))])
def test_the_stated_cost_of_exact(size, tile):
    """host_bytes is what the host store counted."""
    config, latents = SMALL, random_latents(SMALL, *size)
    networks, host = decoding(config), Host(torch.device("cpu"))
    run = ExactDecoder(networks, host, size[1:], tile)
    frames = 0
    for begin, end in spans(size[0]):
        out = run.decode(latents[:, begin:end].transpose(1, 2).contiguous(), end == size[0], plain)
        frames += out.nbytes
    assert host.bytes - frames == host_bytes(networks.modules["decode_first"].decoder, size[1:], size[0], tile, 4)


def test_the_stated_cost_of_exact_at_full_size():
    """What the docstrings say: 49 frames of 480x720 in bfloat16, in the default tiles."""
    with torch.device("meta"):
        decoder = FirstChunk(PREVIEW.vae).decoder
    assert round(host_bytes(decoder, (60, 90), 13, (30, 45), 2) / 1e9) == 194


@pytest.mark.parametrize("size", [(96, 144), (96, 80), (112, 176)])
@pytest.mark.parametrize("tile", [(6, 9), (6, 10), (5, 5), (12, 15), (4, 4), (11, 17)])
def test_tiles_that_do_not_meet_are_refused_before_the_run(tiny, size, tile):
    """Where diffusers' tiles encode the image to another size than the video has, it ends in an error of torch.cat."""
    shape, ratio = VideoShape.of(TINY, *size, 9), TINY.vae.spatial_ratio
    frame = torch.zeros(1, 3, 1, shape.height, shape.width)
    try:
        made = tuple(encode_reference(tiny.networks(shape), frame, tile).shape[3:])
    except RuntimeError:
        made = None  # a tile too narrow for the encoder
    if made == (shape.latent_height, shape.latent_width):
        check_reference(shape, tile, ratio)
    else:
        options = {"height": shape.height, "width": shape.width, "num_frames": 9, "decode": "tiled-reference"}
        with pytest.raises(InputError, match="multiple of 6 and whose width is one of 5"):
            tiny.generate(random_identity(TINY), "A man.", tile=tile, **options)
