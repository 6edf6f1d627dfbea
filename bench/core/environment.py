"""What a figure was measured on and by what: the stamp that every row of a report carries."""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from consisid import bench, engine, export, kernels

PACKAGES = ("torch", "triton", "diffusers", "transformers", "tensorrt", "fa3-fwd", "flash-attn-4", "consisid")
# Settings of the C library, OpenMP and PyTorch that change a figure: they are part of the command.
SETTINGS = ("MALLOC_", "OMP_", "MKL_", "PYTORCH_", "TORCH_", "CUDA_VISIBLE_DEVICES")


def versions() -> dict[str, str]:
    """The installed packages that decide a figure, and Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def commit() -> str | None:
    """The commit of the sources, with "-dirty" where they were changed, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return result.stdout.strip() or None


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of cores that this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{models[0] if models else platform.processor() or platform.machine()}, {cores} cores"


def memory_bytes(device: torch.device) -> int:
    """Of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def command(arguments: Sequence[str] | None = None) -> str:
    """The command line of this process as somebody else would type it: no absolute path of this machine, and in front
    the settings of the environment that change figures."""
    program, *rest = sys.argv if arguments is None else arguments
    name = Path(program).name
    if name.endswith(".py"):  # python -m consisid.bench.gpu
        below = Path(program).with_suffix("").parts[-3:]
        name = "python -m " + ".".join(["consisid", *below]).removesuffix(".__main__")
    settings = [f"{key}={_relative(value)}" for key, value in sorted(os.environ.items()) if key.startswith(SETTINGS)]
    return " ".join([*settings, name, *(_relative(argument) for argument in rest)])


def _relative(argument: str) -> str:
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else f".../{path.name}"


def short_stamp(device: torch.device) -> dict[str, str | None]:
    """What decides a single figure: device, versions of torch, triton and Python, commit, and a hash of our Python
    sources, which a commit alone does not name in a checkout that was changed."""
    here, sources = versions(), hashlib.sha256()
    for part in (kernels, engine, export, bench):
        for root in part.__path__:
            for file in sorted(Path(root).rglob("*.py")):
                sources.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    known = {name: here.get(name) for name in ("python", "torch", "triton", "cuda")}
    return {"device": device_name(device), **known, "commit": commit(), "sources": sources.hexdigest()[:16]}


def stamp(device: torch.device, driver: str | None = None) -> dict[str, Any]:
    """What a row carries: device, driver, versions, commit, command and date (UTC)."""
    return {
        "device": device_name(device),
        "driver": driver,
        "versions": versions(),
        "commit": commit(),
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
