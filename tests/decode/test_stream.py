"""Frames that are handed out while decode goes on, the options of generate, and the mp4 writer beside it."""

import threading
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from support.people import random_identity

from consisid.engine.errors import InputError
from consisid.engine.util import mp4
from consisid.engine.variants import TINY

pytestmark = pytest.mark.slow

OPTIONS = {"seed": 1, "num_inference_steps": 1, "guidance_scale": 1.0}


@cache
def person():
    return random_identity(TINY)


def make(shallow, **options):
    return shallow.generate(person(), "A man.", **OPTIONS, **options)


def test_a_stream_is_the_same_video_frame_by_frame(shallow):
    """The second chunk is not decoded before its first frame is asked for."""
    whole = make(shallow)
    video = make(shallow, output_type="stream")
    assert "decode_first" not in video.stats.calls
    before = shallow.networks().calls["decode_next"]
    read = [next(video.frames) for _ in range(9)]
    assert shallow.networks().calls["decode_next"] == before
    read += list(video.frames)
    assert shallow.networks().calls["decode_next"] == before + 1
    assert np.array_equal(np.stack(read), whole.frames)
    assert video.shape == whole.shape == (17, 96, 144)
    assert video.stats.calls["decode_first"] == 1
    assert video.stats.seconds["decode"] > 0


@pytest.mark.parametrize("mode", ["tiled", "exact", "tiled-reference"])
def test_every_mode_through_generate(shallow, mode):
    video = make(shallow, decode=mode, tile=(6, 10), num_frames=9)
    assert video.frames.shape == (9, 96, 144, 3)
    if mode == "exact":
        other = make(shallow, num_frames=9)
        assert np.abs(video.frames.astype(int) - other.frames).max() <= 1


def test_output_types_have_one_picture(shallow):
    size = {"num_frames": 9}
    frames = make(shallow, **size).frames
    for kind in ("np", "pt", "pil"):
        video = make(shallow, **size, output_type=kind)
        assert video.shape == (9, 96, 144)
        other = video.frames
        other = np.stack([np.asarray(f) for f in other]) / 255 if kind == "pil" else other
        other = other.permute(0, 2, 3, 1).numpy() if kind == "pt" else other
        assert np.abs(other - frames / 255).max() <= 0.5 / 255 + 1e-6, kind


def test_a_stream_is_saved_while_it_is_decoded(shallow, tmp_path):
    import av

    video = make(shallow, output_type="stream")
    path = video.save(tmp_path / "stream.mp4")
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 17
    assert video.shape == (17, 96, 144)
    with pytest.raises(InputError, match="read already"):
        video.save(tmp_path / "again.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["stream.mp4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode": "fast"}, "whole, tiled, tiled-reference, exact"),
        ({"tile": (8, 8)}, "goes with decode"),
        ({"decode": "tiled", "tile": (8, 3)}, "at least 4"),
        ({"decode": "tiled", "tile": 8}, "height, width"),
        ({"decode": "exact", "tile": (8.0, 8)}, "whole numbers"),
    ],
)
def test_what_decode_refuses(shallow, options, message):
    with pytest.raises(InputError, match=message):
        make(shallow, **options)


def frames(count):
    return (np.full((32, 48, 3), i % 256, np.uint8) for i in range(count))


def test_the_writer_runs_beside_the_decode(tmp_path, monkeypatch):
    """The encoder gets the first frame before the last one is made, in a thread of its own."""
    seen = threading.Event()

    def encode(path, given, fps, comment):
        assert threading.current_thread() is not threading.main_thread()
        next(given)
        seen.set()
        assert len(list(given)) == 2

    def slow():
        yield from frames(2)
        assert seen.wait(60)
        yield from frames(1)

    monkeypatch.setattr(mp4, "_encode", encode)
    mp4.write(tmp_path / "x.mp4", slow(), Fraction(8))


def test_an_error_of_the_decode_ends_the_writer(tmp_path):
    def broken():
        yield from frames(3)
        raise RuntimeError("out of memory")

    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="out of memory"):
        mp4.write(tmp_path / "x.mp4", broken(), Fraction(8))
    assert threading.active_count() == threads


def test_an_error_of_the_writer_ends_the_decode(tmp_path):
    made = []

    def endless():
        for frame in frames(100_000):
            made.append(1)
            yield frame

    with pytest.raises(Exception, match=r"No such file|directory"):
        mp4.write(tmp_path / "no" / "folder" / "x.mp4", endless(), Fraction(8))
    assert len(made) < 100_000
