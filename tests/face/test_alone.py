"""The face path runs without the packages that the reference needs, and without a network."""

import subprocess
import sys
import textwrap

PROGRAM = """
import socket, sys

def no_network(*args, **kwargs):
    raise OSError("no network here")

socket.socket.connect = no_network

import pathlib, tempfile
from skimage import data
from consisid.engine.face_chain import analyse, features
from consisid.engine.face_eager import EagerFaceModels
from consisid.engine.fixtures import write_face_models
from consisid.engine.photo import load_photo

with tempfile.TemporaryDirectory() as folder:
    write_face_models(pathlib.Path(folder), seed=0)
    models = EagerFaceModels(pathlib.Path(folder) / "face_encoder")
    id_cond, hidden = features(analyse(load_photo(data.astronaut()), models), models)
    assert id_cond.shape == (1, 1280) and len(hidden) == 5
forbidden = {"torchvision", "facexlib", "timm", "insightface", "consisid_eva_clip"}
loaded = forbidden & {name.split(".")[0] for name in sys.modules}
assert not loaded, loaded
print("identified")
"""


def test_in_a_process_of_its_own():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "identified", done.stderr[-2000:]
