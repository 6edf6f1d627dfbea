"""What a machine is, as far as compiled graphs depend on it."""

import platform
from pathlib import Path

import torch

DRIVER = Path("/sys/module/nvidia/version")  # where Linux says which driver is loaded
# Whose versions a build depends on: the name in a manifest, and that of the distribution.
PACKAGES = {"consisid": "consisid", "triton": "triton", "tensorrt": "tensorrt-cu13", "tensorrt_rtx": "tensorrt-rtx"}
# Instructions of x86 processors as PyTorch calls them; each executes what is compiled for those before it.
INSTRUCTIONS = ("DEFAULT", "AVX2", "AVX512")


def provenance(device: torch.device) -> dict[str, str]:
    """Versions of the packages, the processor, and for a GPU its name, capability and driver."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    found["cpu"] = torch.backends.cpu.get_cpu_capability()
    for name, package in PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found |= {
            "gpu": torch.cuda.get_device_name(device),
            "compute_capability": f"{major}.{minor}",
            "cuda": str(torch.version.cuda),
        }
        if DRIVER.is_file():
            found["driver"] = DRIVER.read_text().strip()
    return found


def executes(here: str | None, built: str | None) -> bool:
    """Whether a processor with the instructions `here` executes what was compiled on one with `built`."""
    if here in INSTRUCTIONS and built in INSTRUCTIONS:
        return INSTRUCTIONS.index(here) >= INSTRUCTIONS.index(built)
    return here == built
