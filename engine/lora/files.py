"""Files of LoRAs: found in a folder or on the hub, and read with what they say of their scale."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError, one_line, shown
from ..util.parsing import Unreadable, parse_json, read_json, shorten, validate

# The names that diffusers and PEFT give such a file, in the order in which they are looked for.
NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
PEFT = "base_model.model."  # what PEFT puts before a tensor's name
CONFIG = "adapter_config.json"  # where PEFT keeps the settings
SETTINGS = "lora_adapter_metadata"  # where diffusers keeps them: JSON in the header
HEADER = 1 << 24  # bytes of a file's names, shapes and metadata: 100,000 tensors have less
# What huggingface_hub is asked with, and what diffusers takes besides and means nothing here.
HUB = (
    "cache_dir", "endpoint", "etag_timeout", "force_download", "headers", "library_name", "library_version",
    "local_dir", "local_files_only", "repo_type", "revision", "token", "user_agent",
)  # fmt: skip
WITHOUT_MEANING = ("low_cpu_mem_usage", "return_lora_metadata")
Alpha = Annotated[float, Ge(-1e6), Le(1e6)]


@dataclass(frozen=True)
class LoraSettings:
    """What a LoRA states besides its tensors, in PEFT's names."""

    lora_alpha: Alpha | None = None
    alpha_pattern: Mapping[str, Alpha] | None = None
    use_rslora: bool = False
    use_dora: bool = False

    @classmethod
    def read(cls, values: Any) -> "LoraSettings":
        """Raises Unreadable for what is no settings, and for patterns that are more than names."""
        settings: LoraSettings = validate(cls, values)
        for pattern in settings.alpha_pattern or {}:
            _name_in(pattern)
        return settings

    def scale(self, module: str, rank: int, alpha: float | None) -> float:
        """alpha / r, or alpha / sqrt(r) where the file says so; 1 where nothing says what alpha is, as in diffusers.

        Args:
            alpha: of the module, where it has a tensor for it.
        """
        if alpha is None:
            patterns = self.alpha_pattern or {}
            alpha = next((patterns[p] for p in patterns if _matches(_name_in(p), module)), self.lora_alpha)
        if alpha is None:
            return 1.0
        return alpha / sqrt(rank) if self.use_rslora else alpha / rank


def _name_in(pattern: str) -> str:
    """The name that a pattern of PEFT's stands for, with ^ in front where it is a whole name.

    PEFT matches regular expressions with the end of a module's name. One from a file may take for ever, so names are
    taken only, with the marks that diffusers and PEFT put around them.

    Raises:
        Unreadable: another expression.
    """
    name = pattern.removesuffix("$").replace("\\.", ".")
    if not name.removeprefix("^").replace("_", "a").replace(".", "a").replace("-", "a").isalnum():
        raise Unreadable(f"alpha_pattern has {shorten(shown(pattern), 60)}, which is no name of a module")
    return name


def _matches(name: str, module: str) -> bool:
    if name.startswith("^"):
        return module == name[1:]
    return module == name or module.endswith(f".{name}")


@dataclass(frozen=True)
class LoraFile:
    """The tensors of a LoRA by name, and the settings that it states, in PEFT's names."""

    name: str
    tensors: Mapping[str, Tensor]
    settings: LoraSettings = field(default_factory=LoraSettings)

    @classmethod
    def read(
        cls,
        source: str | os.PathLike[str],
        weight_name: str | None = None,
        subfolder: str | None = None,
        use_safetensors: bool | None = None,
        proxies: Any = None,
        **hub: Any,
    ) -> "LoraFile":
        """Read a .safetensors file, or one in a folder or on the hub.

        Args:
            weight_name: the file's name, perhaps with folders in front; default one of NAMES, or the only .safetensors
                file there.
            subfolder: where it is.
            use_safetensors, proxies: of diffusers; other files are not read, and huggingface_hub takes its proxies
                from the environment.
            hub: HUB, as huggingface_hub takes them; WITHOUT_MEANING is accepted as well.

        Raises:
            InputError: there is none, it is something else, or another option.
        """
        if not isinstance(source, str | os.PathLike):
            kind = type(source).__name__
            raise InputError(f"A LoRA is a path, a hub id, or tensors by name, not {kind}.")
        for name, value in (("weight_name", weight_name), ("subfolder", subfolder)):
            if not isinstance(value, str | os.PathLike | None):
                raise InputError(f"{name}={shown(value)} is no name of a file or folder.")
        if use_safetensors is False:
            raise InputError("use_safetensors=False asks for pickled weights, which are not read; leave it out.")
        if proxies:
            raise InputError("proxies= is not taken; set HTTPS_PROXY in the environment.")
        unknown = sorted(hub.keys() - {*HUB, *WITHOUT_MEANING})
        if unknown:
            raise InputError(f"{', '.join(unknown)}: no such option of load_lora_weights; there are {', '.join(HUB)}.")
        asked = {name: value for name, value in hub.items() if name in HUB and value is not None}
        file, fetch = _find(
            os.fspath(source), weight_name and os.fspath(weight_name), subfolder and os.fspath(subfolder), asked
        )
        try:
            _check_header(file)
            with safe_open(file, framework="pt", device="cpu") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                stated = (opened.metadata() or {}).get(SETTINGS)
            settings: Any = {}
            if stated is not None:
                settings = parse_json(stated)
                if isinstance(settings, dict):
                    settings = {key.removeprefix("transformer."): value for key, value in settings.items()}
            elif any(name.startswith(PEFT) for name in tensors):
                fetch(CONFIG)
                beside = file.parent / CONFIG
                settings = read_json(beside) if beside.is_file() else {}
            return cls(f"The LoRA {source}", tensors, LoraSettings.read(settings))
        except (OSError, SafetensorError, ValueError) as error:
            reason = one_line(error, 200)
            raise InputError(f"{file} cannot be read as a LoRA ({reason}); it has to be a .safetensors file.") from None


def _check_header(file: Path) -> None:
    """Raises Unreadable where the names of a .safetensors file take more than HEADER bytes."""
    with file.open("rb") as opened:
        if int.from_bytes(opened.read(8), "little") > HEADER:
            raise Unreadable("its header is too long, or it is another file")


def _find(
    source: str, weight_name: str | None, subfolder: str | None, hub: Mapping[str, Any]
) -> tuple[Path, Callable[[str], object]]:
    """The file, and what brings another one beside it, if there is one."""
    path = Path(source)
    try:
        if path.is_file():
            return path, lambda name: None
        if path.is_dir():
            return _choose(path / (subfolder or ""), weight_name), lambda name: None
    except OSError as error:  # a name that is too long
        place = path / (subfolder or "") / (weight_name or "")
        raise InputError(f"There is no LoRA at {place} ({error.strerror}); give a .safetensors file.") from None
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or path.suffix == ".safetensors":
        raise InputError(f"There is no LoRA at {source}; give a .safetensors file, or a folder or hub id with one.")
    inside = f"{subfolder}/" if subfolder else ""
    file = _download(source, [weight_name] if weight_name else NAMES, inside, hub)
    if file is None:
        raise InputError(
            f"{source} on the hub has no {inside}{weight_name or ' or '.join(NAMES)}; say which file with weight_name."
        )
    return file, lambda name: _download(source, [name], inside, hub, needed=False)


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
        except (HfHubHTTPError, HFValidationError, OSError, TypeError, ValueError) as error:  # of odd options too
            failed = error
            break
    if failed is None or not needed:
        return None
    raise InputError(
        f"{source} is no file or folder here and could not be fetched from the hub ({type(failed).__name__}); check "
        "the name and the network, or give a .safetensors file."
    )


def _choose(folder: Path, weight_name: str | None) -> Path:
    """The file that is meant in a folder.

    Raises:
        InputError: it is not there, or several are.
    """
    # macOS leaves files that begin with a dot beside others.
    names = [file.name for file in folder.glob("*.safetensors") if not file.name.startswith(".")]
    listed = ", ".join(sorted(names))
    if weight_name is not None:
        if (folder / weight_name).is_file():
            return folder / weight_name
        raise InputError(f"{folder} has no {weight_name}; there is {listed or 'no .safetensors file'}.")
    known = [name for name in NAMES if name in names]
    if known or len(names) == 1:
        return folder / (known or names)[0]
    there = f"several ({listed})" if names else "none"
    raise InputError(f"{folder} should have one .safetensors file, and has {there}; say which with weight_name.")
