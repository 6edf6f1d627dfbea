"""Compile the hollow device and run a command on it: `python tests/hollow/build.py python script.py`.

The library stands in for the CUDA runtime, the driver, cuBLAS and cuDNN below the PyTorch of this interpreter. Its name
is the driver's, libcuda.so.1, so that who opens that finds it. Calls of PyTorch's libraries that no file in device/ has
are collected from their symbol tables and refused by name.
"""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).parent / "device"
BUILD = Path(__file__).parent / "build"
LIBRARY = "libcuda.so.1"
# What PyTorch calls of CUDA, and a GPU would answer. NCCL and the compilers are left to the real libraries.
ANSWERED = re.compile(r"_*cuda[A-Z]\w*|cu[A-Z]\w*|cublas\w*|cudnn\w*|cusolver\w*|cusparse\w*|cufft\w*")
COMPILE = ("-std=gnu17", "-shared", "-fPIC", "-O1", "-fvisibility=hidden", f"-Wl,-soname,{LIBRARY}")
LIBRARIES = tuple(f"lib{name}.so" for name in ("torch_cuda", "c10_cuda", "torch_python", "torch_cuda_linalg"))


class NotHere(Exception):
    """The device cannot be built on this machine; the text says why."""


def torch_folder() -> Path:
    """Where PyTorch is installed; it is not imported, which would load the real libraries."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        raise NotHere("PyTorch is not installed")
    folder = Path(found.origin).parent
    if not (folder / "lib" / "libtorch_cuda.so").exists():
        raise NotHere(f"PyTorch {version('torch')} is a build without CUDA")
    return folder


def cuda_home(torch: Path) -> Path:
    """The folder with CUDA's headers: CUDA_HOME, those of the wheels beside PyTorch, or the system's."""
    named = os.environ.get("CUDA_HOME")
    candidates = (
        [Path(named)] if named else [*sorted((torch.parent / "nvidia").glob("cu[0-9]*")), Path("/usr/local/cuda")]
    )
    for folder in candidates:
        if (folder / "include" / "cuda.h").exists() and (folder / "include" / "crt" / "host_defines.h").exists():
            return folder
    raise NotHere(f"no CUDA headers in {', '.join(map(str, candidates))}; pip install 'cuda-toolkit[cccl,crt,cudart]'")


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotHere(f"{command[0]} does not start ({error.strerror})") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def _symbols(library: Path, *, defined: bool) -> Iterator[str]:
    """Names that a library has for others, or wants from them."""
    for line in _run("nm", "-D", "--defined-only" if defined else "--undefined-only", str(library)).splitlines():
        yield line.split()[-1].partition("@")[0]


def wanted(torch: Path) -> set[str]:
    """The calls of PyTorch's libraries that have to be answered; texts of errors are left to the real ones."""
    libraries = [torch / "lib" / name for name in LIBRARIES]
    names = {name for path in libraries if path.exists() for name in _symbols(path, defined=False)}
    return {name for name in names if ANSWERED.fullmatch(name) and "GetErrorString" not in name}


def _compile(target: Path, include: Path, *sources: Path) -> None:
    options = [f"-I{SOURCES}", f"-I{include}", "-w", "-o", str(target), *map(str, sources), "-ldl", "-lpthread"]
    _run(os.environ.get("CC", "gcc"), *COMPILE, *options)


def build() -> Path:
    """The folder of the library, compiled unless these sources were compiled for this PyTorch before.

    Raises:
        NotHere: no CUDA build of PyTorch, no headers or no compiler.
    """
    torch = torch_folder()
    include = cuda_home(torch) / "include"
    sources = sorted(SOURCES.glob("*.c"))
    texts = [path.read_bytes() for path in [*sources, *sorted(SOURCES.glob("*.h")), Path(__file__)]]
    key = hashlib.sha256(b"\0".join([*texts, version("torch").encode(), str(include).encode()])).hexdigest()[:16]
    folder = BUILD / key
    if (folder / LIBRARY).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "without-refusals.so"
    _compile(first, include, *sources)
    missing = sorted(wanted(torch) - set(_symbols(first, defined=True)))
    refused = folder / "refused.c"
    refused.write_text('#include "refused.h"\n' + "".join(f"REFUSE({name})\n" for name in missing))
    part = folder / f"{LIBRARY}.{os.getpid()}"
    _compile(part, include, *sources, refused)
    if not (folder / "libcuda.so").is_symlink():
        (folder / "libcuda.so").symlink_to(LIBRARY)  # for linkers
    first.unlink()
    part.rename(folder / LIBRARY)
    return folder


def environment() -> Mapping[str, str]:
    """What a process needs to run on the hollow device, and to compile for it."""
    folder = build()
    return {
        "LD_PRELOAD": str(folder / LIBRARY),
        "LD_LIBRARY_PATH": str(folder),
        "LIBRARY_PATH": str(folder),  # where linkers look
        "TRITON_LIBCUDA_PATH": str(folder),
        "CUDA_HOME": str(cuda_home(torch_folder())),
    }


def main() -> int:
    """Run a command on the device, or without one print the environment that it takes."""
    try:
        variables = environment()
    except NotHere as reason:
        print(f"The hollow CUDA device cannot be built here: {reason}.", file=sys.stderr)
        return 3
    if len(sys.argv) == 1:
        print("\n".join(f"{name}={value}" for name, value in variables.items()))
        return 0
    os.execvpe(sys.argv[1], sys.argv[1:], {**os.environ, **variables})


if __name__ == "__main__":
    sys.exit(main())
