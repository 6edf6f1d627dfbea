"""consisid-bench --identity: a person is like herself, less like another picture, and a landscape is nobody."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from consisid.bench import cli
from consisid.engine.video import Stats, Video


def write_video(frames, path):
    return Video(np.stack(frames), 8, Stats()).save(path)


def test_identity(tiny_folder, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(astronaut()).save(photo)
    blue = np.full_like(astronaut(), (30, 90, 160))
    video = write_video([astronaut(), np.ascontiguousarray(astronaut()[:, ::-1]), blue], tmp_path / "video.mp4")
    arguments = [
        str(tiny_folder),
        "--identity",
        "--image",
        str(photo),
        "--video",
        str(video),
        "--output",
        str(tmp_path),
    ]
    assert cli.main(arguments) == 0
    assert "no face in 1 of 3 frames" in capsys.readouterr().out
    result = json.loads((tmp_path / "identity.json").read_text())
    same, mirrored, nobody = result["frames"]
    assert same > 0.99  # the codec's loss
    assert mirrored < same
    assert nobody is None
    assert result["without_face"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --image and --video"),
        (["--image", "{photo}", "--video", "nowhere.mp4"], "nowhere.mp4: no such video"),
    ],
)
def test_refused(tiny_folder, tmp_path, capsys, flags, message):
    photo = tmp_path / "photo.png"
    Image.fromarray(astronaut()).save(photo)
    flags = [flag.format(photo=photo) for flag in flags]
    assert cli.main([str(tiny_folder), "--identity", "--output", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
