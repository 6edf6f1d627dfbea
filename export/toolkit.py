"""What AOTInductor needs of a machine to build beyond PyTorch's wheels, found before anything is compiled.

Kernels are compiled by Triton, which brings its own assembler. The program around them is C++ that includes CUDA's
headers and is linked with the driver's library; PyTorch's wheels have neither the compiler nor all of the headers
(crt/host_defines.h and nv/target are missing). A short program that needs the same is compiled, with the paths that
torch.utils.cpp_extension gives, from which Inductor takes its own.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import torch

from consisid.engine.errors import BackendError

# The headers of CUDA that torch/csrc/inductor/cpp_wrapper/cuda.h and aoti_runtime/device_utils.h include.
PROGRAM = """
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
int main() { return cuInit(0); }
"""
# A library that uses what C++'s own library keeps one of in a process.
LIBRARY = "#include <sstream>\nint digits(int x) { std::ostringstream s; s << x; return s.str().size(); }\n"
FAULTS = ("error", "cannot find")  # of the compiler's and the linker's lines, those that say what is wrong


def check_toolkit() -> None:
    """Compile and link PROGRAM, which a build for CUDA needs besides.

    Raises:
        BackendError: no toolkit, no compiler, or one that it cannot be made with.
    """
    from torch.utils import cpp_extension  # looks for the toolkit when it is imported, and logs what it lacks

    home = cpp_extension.CUDA_HOME
    if home is None:
        raise _refusal(
            "PyTorch finds no CUDA toolkit (CUDA_HOME is not set, nvcc is not on the path, and there is no "
            "/usr/local/cuda)"
        )
    folders = [f"-I{path}" for path in cpp_extension.include_paths("cuda", False)]
    for path in cpp_extension.library_paths("cuda", False):
        folders += [f"-L{path}", f"-L{path}/stubs"] if "CUDA_HOME" in os.environ else [f"-L{path}"]  # as Inductor does
    with tempfile.TemporaryDirectory() as place:
        run = _compile(PROGRAM, *folders, "-lcuda", "-o", f"{place}/program")
    if run.returncode == 0:
        return
    said = _fault(run.stderr)
    if "-lcuda" in said:
        raise BackendError(
            f"inductor cannot build for CUDA here: the driver's library libcuda.so is not where {compiler_name()} "
            "looks for it; name its folder in LIBRARY_PATH, or build with --backend eager."
        )
    raise _refusal(f"the toolkit in {home} is not whole ({said})")


def check_compiler() -> None:
    """Whether the C++ compiler makes libraries that share C++'s own library with PyTorch: with a copy of it inside, a
    package is built and ends the process that loads it.

    Raises:
        BackendError: it does not, or there is no compiler.
    """
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "library.so"
        run = _compile(LIBRARY, "-shared", "-fPIC", "-o", str(made))
        if run.returncode != 0:
            raise BackendError(
                f"inductor cannot build here: {compiler_name()} makes no library ({_fault(run.stderr)}); install "
                "g++, or build with --backend eager."
            )
        shared = b"libstdc++.so" in made.read_bytes()  # among the libraries that it needs
    if not shared:
        raise BackendError(
            f"inductor cannot build here: {compiler_name()} does not link libstdc++.so, which PyTorch uses too, into "
            "the libraries that it makes, and they would crash where they are loaded; name another C++ compiler in "
            "CXX, or build with --backend eager."
        )


def compiler_name() -> str:
    """The one that Inductor calls."""
    return os.environ.get("CXX", "g++")


def _compile(program: str, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [compiler_name(), "-x", "c++", "-", *options]
    try:
        return subprocess.run(command, input=program, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BackendError(
            f"inductor cannot build here: the C++ compiler {compiler_name()} does not start ({error.strerror}); "
            "install g++, or build with --backend eager."
        ) from None


def _fault(printed: str) -> str:
    lines = printed.splitlines()
    return next((line for line in lines if any(word in line for word in FAULTS)), "it ended with an error")


def _refusal(what: str) -> BackendError:
    return BackendError(
        f"inductor cannot build for CUDA here: {what}; {how_to_install()}, or build with --backend eager."
    )


def how_to_install() -> str:
    """How to get headers that fit the installed PyTorch. Those from PyPI lie in one folder since CUDA 13 only."""
    version = str(torch.version.cuda)
    major, _, minor = version.partition(".")
    if not major.isdigit() or int(major) < 13:
        return f"install the CUDA {version} toolkit and set CUDA_HOME to its folder"
    home = Path(torch.__file__).parents[1] / "nvidia" / f"cu{major}"
    return f'pip install "cuda-toolkit[cccl,crt,cudart]=={major}.{minor}.*" and set CUDA_HOME={home}'
