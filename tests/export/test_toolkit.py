"""What AOTInductor needs to build for CUDA is looked for before a build begins: with toolkits that are made up here."""

import subprocess
from importlib import import_module

import pytest
import torch
from support.engines import ANY_SIZE
from torch.utils import cpp_extension

from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.errors import BackendError
from consisid.engine.manifest import Manifest
from consisid.export import build, toolkit
from consisid.export import compile as choose
from consisid.export.describe import plan_build

pytestmark = pytest.mark.slow

MODULE = import_module("consisid.export.build")
HEADERS = ("cuda.h", "cuda_bf16.h", "cuda_fp16.h", "cuda_runtime_api.h")
GPU = torch.device("cuda", 0)
INIT = 'extern "C" int cuInit(unsigned)'


@pytest.fixture
def use(monkeypatch):
    """use(home): the toolkit that PyTorch finds, None for no toolkit."""

    def set_home(home):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        for name in ("LIBRARY_PATH", "CPATH", "CPLUS_INCLUDE_PATH", "CXX"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", None if home is None else str(home))
        if home is None:
            monkeypatch.delenv("CUDA_HOME", raising=False)
        else:
            monkeypatch.setenv("CUDA_HOME", str(home))

    return set_home


def write_toolkit(folder, headers=HEADERS, library=True):
    """A toolkit of almost empty headers, and a library of the driver."""
    stubs = folder / "lib64" / "stubs"
    stubs.mkdir(parents=True)
    (folder / "include").mkdir()
    for name in headers:
        (folder / "include" / name).write_text(f"{INIT};\n" if name == "cuda.h" else "")
    if library:
        command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(stubs / "libcuda.so")]
        subprocess.run(command, input=f"{INIT} {{ return 0; }}", text=True, check=True)
    return folder


def test_a_whole_toolkit_will_do(use, tmp_path):
    use(write_toolkit(tmp_path / "cuda"))
    toolkit.check_toolkit()
    assert choose.find_unusable("inductor", GPU) == choose.find_unusable("auto", GPU) == {}


def test_without_a_toolkit(use):
    use(None)
    with pytest.raises(BackendError) as caught:
        toolkit.check_toolkit()
    said = str(caught.value)
    assert "PyTorch finds no CUDA toolkit (CUDA_HOME is not set, nvcc is not on the path" in said
    assert 'pip install "cuda-toolkit[cccl,crt,cudart]==13.0.*" and set CUDA_HOME=' in said
    assert said.endswith("/nvidia/cu13, or build with --backend eager.")


@pytest.mark.parametrize("missing", HEADERS)
def test_a_toolkit_without_a_header(use, tmp_path, missing):
    """As PyTorch's wheels leave it: some headers are there, and the compiler says which is not."""
    use(write_toolkit(tmp_path / "cuda", [name for name in HEADERS if name != missing]))
    with pytest.raises(BackendError, match=rf"/cuda is not whole \(.*{missing}.*\); pip install"):
        toolkit.check_toolkit()


def test_a_machine_without_the_drivers_library(use, tmp_path):
    use(write_toolkit(tmp_path / "cuda", library=False))
    with pytest.raises(BackendError, match=r"libcuda\.so is not where g\+\+ looks .*LIBRARY_PATH"):
        toolkit.check_toolkit()


def test_a_machine_without_a_compiler(use, tmp_path, monkeypatch):
    use(write_toolkit(tmp_path / "cuda"))
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(BackendError, match=r"compiler .*none does not start \(No such file or directory\); install"):
        toolkit.check_toolkit()


@pytest.mark.parametrize("device", [GPU, torch.device("cpu")])
def test_a_compiler_that_keeps_its_own_library(tmp_path, monkeypatch, device):
    """Seen on a machine with an H200: the package of a block was compiled, and ended the process that loaded it."""
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -static-libstdc++\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(BackendError, match=r"g\+\+ does not link libstdc\+\+\.so.*name another C\+\+ compiler in CXX"):
        choose.find_unusable("inductor", device)


@pytest.mark.parametrize("device", [GPU, torch.device("cpu")])
def test_no_compiler_on_any_device(tmp_path, monkeypatch, device):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(BackendError, match=r"the C\+\+ compiler .*none does not start"):
        choose.find_unusable("inductor", device)
    with pytest.warns(UserWarning, match="leaves inductor out"):
        assert set(choose.find_unusable("auto", device)) == {"inductor"}


def test_pytorch_for_cuda_12(use, monkeypatch):
    """Its wheels keep every part of the toolkit in a folder of its own, which is no CUDA_HOME."""
    use(None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(BackendError, match=r"; install the CUDA 12\.8 toolkit and set CUDA_HOME"):
        toolkit.check_toolkit()


def test_inductor_by_name_is_refused_before_anything_is_read(use, tmp_path, monkeypatch):
    use(None)
    monkeypatch.setattr(MODULE, "check_device", lambda name: GPU)
    monkeypatch.setattr(MODULE, "Source", None)
    with pytest.raises(BackendError, match="finds no CUDA toolkit"):
        build("tiny", tmp_path / "engine", backend="inductor", device="cuda")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_it_too(use, monkeypatch):
    use(None)
    monkeypatch.setattr("consisid.export.describe.check_device", lambda name: GPU)
    options = {"dtype": None, "height": None, "width": None, "num_frames": None, "random_weights": False}
    with pytest.raises(BackendError, match="finds no CUDA toolkit"):
        plan_build("tiny", backend="inductor", device="cuda", **options)


def test_auto_warns_once_and_the_manifest_keeps_the_reason(use, tmp_path, monkeypatch):
    """On a CPU in the GPU's place: no graph is traced or compiled for inductor."""
    use(None)
    with pytest.warns(UserWarning, match="leaves inductor out, so that graphs stay eager: .*no CUDA toolkit") as said:
        unusable = choose.find_unusable("auto", GPU)
    assert len(said) == 1
    monkeypatch.setattr(MODULE, "find_unusable", lambda name, device: unusable)
    monkeypatch.setattr(choose, "_make", lambda name, *rest: None if name == "eager" else pytest.fail(name))
    monkeypatch.setattr(choose, "candidates", lambda graph, device: choose.CANDIDATES)
    monkeypatch.setattr(choose, "RUNS", 1)
    checkpoint = write_checkpoint(ANY_SIZE, tmp_path / "checkpoint")
    build(checkpoint, tmp_path / "engine", num_frames=9, height=48, width=48)
    for entry in Manifest.read(tmp_path / "engine").graphs.values():
        assert entry.backend == "eager"
        assert "finds no CUDA toolkit" in entry.rejected["inductor"]


@pytest.mark.parametrize(("backend", "device"), [("inductor", "cpu"), ("auto", "cpu"), ("eager", "cuda")])
def test_who_needs_no_toolkit_is_not_asked_for_one(use, backend, device):
    use(None)
    assert choose.find_unusable(backend, torch.device(device)) == {}
