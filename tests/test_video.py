"""Videos are written under every legal name, at every rate that an mp4 states, and their place is tried beforehand."""

import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.people import random_identity

from consisid.engine.errors import InputError, WriteError
from consisid.engine.util import mp4
from consisid.engine.variants import TINY
from consisid.engine.video import Stats, Video

FULL = OSError(28, "No space left on device")


def video(count=3, fps=8):
    return Video(np.zeros((count, 32, 48, 3), np.uint8), fps, Stats())


def read(path):
    with Path(path).open("rb") as file, av.open(file) as container:
        return sum(1 for _ in container.decode(video=0)), container.streams.video[0].average_rate


@pytest.mark.parametrize(
    "name", ["2026-01-02T12:30:00.mp4", "http:x.mp4", "a" * 251 + ".mp4", "a b%20#?.mp4", "é\udcff.MP4", "-.mp4"]
)
def test_every_legal_name(tmp_path, monkeypatch, name):
    """Relative, as a user types them: with a folder in front FFmpeg takes no name for an address."""
    monkeypatch.chdir(tmp_path)
    assert video().save(name) == Path(name)
    assert read(name) == (3, 8)
    assert os.listdir() == [name]


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (None, 8), (29.97, Fraction(2997, 100)), (Fraction(30000, 1001), Fraction(30000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)), (23.976, Fraction(2997, 125)), (np.float32(12.5), Fraction(25, 2)),
        (np.int64(24), 24), (Decimal("59.94"), Fraction(2997, 50)), (1, 1), (0.5, Fraction(1, 2)),
    ],
)  # fmt: skip
def test_frame_rates(tmp_path, fps, rate):
    assert read(video().save(tmp_path / "x.mp4", fps=fps))[1] == rate


@pytest.mark.parametrize(
    "fps",
    [0, -1, 0.0, float("nan"), float("inf"), -float("inf"), 1e9, 1e-9, True, "8", 8j, [8], 10**400, Decimal("NaN")],
)
def test_what_is_no_frame_rate(tmp_path, fps):
    with pytest.raises(InputError, match=r"fps=.* is no frame rate; give a number from 0.001 to 1000"):
        video().save(tmp_path / "x.mp4", fps=fps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [3, b"x.mp4", None, ["x.mp4"]])
def test_what_is_no_path(path):
    with pytest.raises(InputError, match=r"A path is a text or a Path, not"):
        video().save(path)


@pytest.mark.parametrize("name", ["a\0.mp4", "a" * 252 + ".mp4", "file/x.mp4", "pipe.mp4", "folder.mp4"])
def test_what_is_no_place(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"cannot be written|is a folder|is a device or a pipe"):
        video().save(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def test_the_place_is_tried_with_the_writer_before_anything_is_decoded(tmp_path, monkeypatch):
    decoded = []
    stream = video()
    stream.frames = (decoded.append(1) or frame for frame in stream.frames)
    monkeypatch.setattr(mp4, "_encode", lambda *_: (_ for _ in ()).throw(FULL))
    with pytest.raises(WriteError, match=r"x.mp4 cannot be written in .* \(No space left on device\)"):
        stream.save(tmp_path / "x.mp4")
    assert decoded == []
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_frames_are_written(tmp_path, monkeypatch):
    """The old file stays, and what was written of the new one goes."""
    path = video().save(tmp_path / "x.mp4")
    before, encode, calls = path.read_bytes(), mp4._encode, []

    def full(file, frames, fps, *rest):
        calls.append(1)
        encode(file, frames, fps, *rest)
        if len(calls) == 2:  # the first is the trial
            raise FULL

    monkeypatch.setattr(mp4, "_encode", full)
    with pytest.raises(WriteError, match=r"x.mp4 cannot be written \(No space left on device\); check the free space"):
        video().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_stream_that_was_begun_is_not_saved_without_its_first_frames(tiny, tmp_path):
    made = tiny.generate(
        random_identity(TINY), "A man.", seed=1, num_inference_steps=1, num_frames=9, guidance_scale=1.0,
        output_type="stream",
    )  # fmt: skip
    next(made.frames)
    with pytest.raises(InputError, match=r'x.mp4: 1 frames of this "stream" were read already and would be missing'):
        made.save(tmp_path / "x.mp4")
    assert list(tmp_path.iterdir()) == []
    assert len(list(made.frames)) == 8  # nothing more is lost


def test_a_stream_that_was_closed(tmp_path):
    stream = video()
    stream.frames = iter([])
    with pytest.raises(InputError, match="there are no frames to write"):
        stream.save(tmp_path / "x.mp4")
