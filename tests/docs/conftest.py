"""For the tests of the documents: a photograph, and what a folder outside of the package's path has in it."""

import importlib.util
import os
import shutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from skimage.data import astronaut

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "me.jpg"
    Image.fromarray(astronaut()).save(path)
    return path


@pytest.fixture(scope="session")
def pages() -> ModuleType:
    """docs/site/pages.py."""
    spec = importlib.util.spec_from_file_location("docs_site_pages", ROOT / "docs" / "site" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shell(tmp_path: Path, photo: Path) -> dict[str, Any]:
    """An environment in whose path the commands are, and a folder with me.jpg in it."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (tmp_path / "bin").mkdir()
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        script = tmp_path / "bin" / name
        script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)
    (tmp_path / "home").mkdir()
    shutil.copy(photo, tmp_path / "home" / "me.jpg")
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    return {"cwd": tmp_path / "home", "env": {**os.environ, "PATH": path}, "capture_output": True, "text": True}
