"""Files of LoRAs: found in a folder or on the hub, and read with what they say of their scale."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import InputError

# The names that diffusers and PEFT give such a file, in the order in which they are looked for.
NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
PEFT = "base_model.model."  # what PEFT puts before a tensor's name
CONFIG = "adapter_config.json"  # where PEFT keeps the settings
SETTINGS = "lora_adapter_metadata"  # where diffusers keeps them: JSON in the header


@dataclass(frozen=True)
class LoraFile:
    """The tensors of a LoRA by name, and the settings that it states, in PEFT's names."""

    name: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls, source: str | Path, weight_name: str | None = None, subfolder: str | None = None, **hub: Any
    ) -> "LoraFile":
        """Read a .safetensors file, or one in a folder or on the hub.

        Args:
            weight_name: the file's name; default one of NAMES, or the only .safetensors file there.
            subfolder: where it is.
            hub: revision, token, cache_dir, local_files_only and the like, as huggingface_hub takes them.

        Raises:
            InputError: there is none, or it is something else.
        """
        file, fetch = _find(source, weight_name, subfolder, hub)
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                stated = (opened.metadata() or {}).get(SETTINGS)
            settings = {}
            if stated is not None:
                settings = {key.removeprefix("transformer."): value for key, value in json.loads(stated).items()}
            elif any(name.startswith(PEFT) for name in tensors):
                fetch(CONFIG)
                beside = file.parent / CONFIG
                settings = json.loads(beside.read_text()) if beside.is_file() else {}
        except (OSError, SafetensorError, ValueError, AttributeError) as error:
            raise InputError(f"{file} cannot be read as a LoRA ({error}); it has to be a .safetensors file.") from None
        return cls(f"The LoRA {source}", tensors, settings)


def _find(
    source: str | Path, weight_name: str | None, subfolder: str | None, hub: Mapping[str, Any]
) -> tuple[Path, Callable[[str], object]]:
    """The file, and what brings another one beside it, if there is one."""
    path = Path(source)
    if path.is_file():
        return path, lambda name: None
    if path.is_dir():
        folder = path / (subfolder or "")
        names = [file.name for file in folder.glob("*.safetensors")]
        return folder / _choose(source, names, weight_name), lambda name: None
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")) or path.suffix == ".safetensors":
        raise InputError(f"There is no LoRA at {source}; give a .safetensors file, or a folder or hub id with one.")
    inside = f"{subfolder}/" if subfolder else ""
    file = _download(str(source), [weight_name] if weight_name else NAMES, inside, hub)
    if file is None:
        raise InputError(
            f"{source} on the hub has no {inside}{weight_name or ' or '.join(NAMES)}; say which file with weight_name."
        )
    return file, lambda name: _download(str(source), [name], inside, hub, needed=False)


def _download(
    source: str, names: Sequence[str], inside: str, hub: Mapping[str, Any], needed: bool = True
) -> Path | None:
    """The first of these files that a repository of the hub, or without a network its copy here, has.

    Raises:
        InputError: it cannot be asked, and a file is needed.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    failed: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(source, inside + name, **hub))
        except LocalEntryNotFoundError as error:  # no network; the next may be here
            failed = error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            failed = error
            break
    if failed is None or not needed:
        return None
    raise InputError(
        f"{source} is no file or folder here and could not be fetched from the hub ({type(failed).__name__}); check "
        "the name and the network, or give a .safetensors file."
    )


def _choose(source: str | Path, names: list[str], weight_name: str | None) -> str:
    listed = ", ".join(sorted(names))
    if weight_name is not None:
        if weight_name in names:
            return weight_name
        raise InputError(f"{source} has no {weight_name}; there is {listed or 'no .safetensors file'}.")
    known = [name for name in NAMES if name in names]
    if known or len(names) == 1:
        return (known or names)[0]
    there = f"several ({listed})" if names else "none"
    raise InputError(f"{source} should have one .safetensors file, and has {there}; say which with weight_name.")
