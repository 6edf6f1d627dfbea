"""For the tests of the documents: a photograph, and what a folder outside of the package's path has in it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

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
