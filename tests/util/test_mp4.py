"""What mp4 files are made of."""

from fractions import Fraction
from io import BytesIO

import numpy as np

from consisid.engine.util import mp4


def test_the_same_frames_give_the_same_file():
    """Whatever an encoder finds in memory that it has not written."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (12, 24, 3)).repeat(12, 0).repeat(12, 1)
    frames = [
        np.uint8((np.roll(picture, 2 * shift, 1) + rng.integers(0, 8, picture.shape)) % 256) for shift in range(17)
    ]
    made = set()
    for number in range(6):
        left = [np.full(int(size), number + 3, np.uint8) for size in rng.integers(1, 200_000, 200)]
        del left
        file = BytesIO()
        mp4._encode(file, iter(frames), Fraction(8))  # in this thread, whose memory it is
        made.add(file.getvalue())
    assert len(made) == 1
