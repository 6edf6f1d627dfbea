"""Files of LoRAs: found in a folder or on the hub, and read with what they say of their scale."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import InputError

# The names that diffusers and PEFT give such a file, in the order in which they are looked for.
NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
CONFIG = "adapter_config.json"  # where PEFT keeps the settings
SETTINGS = "lora_adapter_metadata"  # where diffusers keeps them: JSON in the header


@dataclass(frozen=True)
class LoraFile:
    """The tensors of a LoRA by name, and its settings in PEFT's names, None where it states none."""

    name: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] | None = None

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
        file, config = _find(source, weight_name, subfolder, hub)
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                stated = (opened.metadata() or {}).get(SETTINGS)
            settings = None if config is None else json.loads(config.read_text())
            if stated is not None:
                settings = {key.removeprefix("transformer."): value for key, value in json.loads(stated).items()}
        except (OSError, SafetensorError, ValueError, AttributeError) as error:
            raise InputError(f"{file} cannot be read as a LoRA ({error}); it has to be a .safetensors file.") from None
        return cls(f"The LoRA {source}", tensors, settings)


def _find(
    source: str | Path, weight_name: str | None, subfolder: str | None, hub: Mapping[str, Any]
) -> tuple[Path, Path | None]:
    """The file, and PEFT's settings beside it."""
    path = Path(source)
    if path.is_file():
        return path, _existing(path.parent / CONFIG)
    if path.is_dir():
        folder = path / (subfolder or "")
        name = _choose(source, [file.name for file in folder.glob("*.safetensors")], weight_name)
        return folder / name, _existing(folder / CONFIG)
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")) or path.suffix == ".safetensors":
        raise InputError(f"There is no LoRA at {source}; give a .safetensors file, or a folder or hub id with one.")
    return _download(
        str(source), [weight_name] if weight_name else list(NAMES), f"{subfolder}/" if subfolder else "", hub
    )


def _download(source: str, names: Sequence[str], inside: str, hub: Mapping[str, Any]) -> tuple[Path, Path | None]:
    """The first of these files that a repository of the hub has, and PEFT's settings where it has them."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def get(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(source, inside + name, **hub))
        except LocalEntryNotFoundError:  # no network, and it is not in the cache
            raise
        except EntryNotFoundError:
            return None

    try:
        file = next(filter(None, map(get, names)), None)
        if file is not None:
            return file, get(CONFIG)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{source} is no file or folder here and could not be fetched from the hub ({type(error).__name__}); check "
            "the name and the network, or give a .safetensors file."
        ) from None
    raise InputError(f"{source} on the hub has no {inside}{' or '.join(names)}; say which file with weight_name.")


def _choose(source: str | Path, names: list[str], weight_name: str | None) -> str:
    found = [name for name in names if name.endswith(".safetensors")]
    if weight_name is not None:
        if weight_name in found:
            return weight_name
        raise InputError(
            f"{source} has no {weight_name}; there is {', '.join(sorted(found)) or 'no .safetensors file'}."
        )
    known = [name for name in NAMES if name in found]
    if known or len(found) == 1:
        return (known or found)[0]
    there = f"several ({', '.join(sorted(found))})" if found else "none"
    raise InputError(f"{source} should have one .safetensors file, and has {there}; say which with weight_name.")


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
