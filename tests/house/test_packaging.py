"""The wheel installs and imports from anywhere, imports point one way, and no part needs what it should not need."""

import ast
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from PIL import Image
from skimage.data import astronaut

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ORDER = ("kernels", "engine", "export", "bench")
PUBLIC = "import consisid.engine.api, consisid.kernels, consisid.export, consisid.bench"


def imported(file: Path, package: str) -> set[str]:
    """The packages of ours that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("consisid.")}
    return found - {package}


def test_imports_point_one_way():
    for rank, package in enumerate(ORDER):
        for file in (ROOT / package).rglob("*.py"):
            against = imported(file, package) & set(ORDER[rank:])
            assert not against, f"{file} imports consisid.{', '.join(against)}"


def test_importing_needs_no_other_packages():
    """All at once: nothing may be imported that only one of them would stand in for."""
    names = "torchvision tensorrt tensorrt_rtx onnxscript facexlib timm insightface triton xformers"
    script = f"import sys; sys.modules.update(dict.fromkeys({names!r}.split())); {PUBLIC}"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_importing_is_light():
    """Importing the run time loads neither diffusers' nor transformers' models, and starts no GPU."""
    script = (
        f"{PUBLIC}; import sys, torch; assert not torch.cuda.is_initialized(); "
        "heavy = ('diffusers', 'transformers', 'onnxruntime', 'av.', 'huggingface'); "
        "print(*[m for m in sys.modules if m.startswith(heavy)])"
    )
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []


IDENTIFY = """
import socket, sys
socket.socket.connect = None  # no network either
for name in ("torchvision", "facexlib", "timm", "insightface", "consisid_eva_clip"):
    sys.modules[name] = None
from consisid.engine import ConsisID
person = ConsisID.open(sys.argv[1]).identify(sys.argv[2])
print(person.id_cond.shape[1], len(person.id_vit_hidden))
"""


def test_the_wheel_installs_into_a_fresh_environment(tmp_path, tiny_folder):
    """Built, installed without its dependencies, which a path file lends from here, imported from outside; and there a
    photo is identified without any of the packages that the reference needs for it."""
    run = {"check": True, "capture_output": True, "text": True, "cwd": tmp_path}
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, ROOT], **run)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], **run)
    site = Path(next((tmp_path / "venv" / "lib").glob("python*"))) / "site-packages"
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    script = f"{PUBLIC}; print(consisid.engine.__file__)"
    result = subprocess.run([python, "-c", script], **run)
    assert Path(result.stdout.strip()).is_relative_to(tmp_path)
    assert (site / "consisid" / "engine" / "py.typed").is_file()
    Image.fromarray(astronaut()).save(tmp_path / "photo.png")
    result = subprocess.run([python, "-c", IDENTIFY, tiny_folder, tmp_path / "photo.png"], **run)
    assert result.stdout.split() == ["1280", "5"]
    for command in ("consisid-build", "consisid-generate", "consisid-bench"):
        result = subprocess.run([tmp_path / "venv" / "bin" / command, "--help"], **run)
        assert result.stdout.startswith(f"usage: {command}")
