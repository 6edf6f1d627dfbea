"""These tests need facexlib, insightface and consisid_eva_clip: `make face-parity` makes a venv that has them."""

import importlib.util
import sys
from pathlib import Path

import pytest

PACKAGES = ("facexlib", "insightface", "consisid_eva_clip")
here = all(importlib.util.find_spec(name) for name in PACKAGES)
collect_ignore_glob = [] if here else ["test_*.py"]

if here:
    # pytest's importlib mode does not, and the modules here import each other.
    sys.path.insert(0, str(Path(__file__).parent))
    import shim

    shim.install()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of TINY's face models."""
    from consisid.engine.checkpoint.tiny_faces.write import write_face_models

    folder = tmp_path_factory.mktemp("tiny")
    write_face_models(folder, seed=0)
    return folder
