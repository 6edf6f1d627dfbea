"""A run's finished steps in a file: safetensors with a JSON in its header, written whole or not at all."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .denoise import LoopState
from .errors import InputError
from .files import file_aside

FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    """A run after a step.

    Attributes:
        loop: where the loop goes on.
        cfg: the mode that the steps ran in; the rest has to run in it too, for the same bytes.
        start: states of the generators before the run, from which the stages before the loop draw the same again.
        now: states of the generators after the step.
    """

    loop: LoopState
    cfg: str
    start: tuple[Tensor, ...]
    now: tuple[Tensor, ...]

    def save(self, path: Path, request: str) -> None:
        """Write the snapshot of a request.

        Raises:
            InputError: a scheduler that keeps something which cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        values = {
            "format": FORMAT, "request": request, "cfg": self.cfg, "steps": self.loop.steps,
            "latents": _pack(self.loop.latents, tensors),
            "prompt_embeds": _pack(self.loop.prompt_embeds, tensors),
            "stepper": _pack(self.loop.stepper, tensors),
            "start": _pack(self.start, tensors), "now": _pack(self.now, tensors),
        }  # fmt: skip
        with file_aside(path) as aside:
            save_file(tensors, aside, {"consisid": json.dumps(values)})

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "tuple[Snapshot, str]":
        """A snapshot and the request that it is of.

        Raises:
            InputError: a file that is something else, or damaged.
        """
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                values = json.loads(file.metadata()["consisid"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']}, here {FORMAT}")
            stepper = _unpack(values["stepper"], tensors)
            if stepper["prediction"] is not None:
                stepper["prediction"] = stepper["prediction"].to(device)
            embeds = _unpack(values["prompt_embeds"], tensors)
            loop = LoopState(
                values["steps"], _unpack(values["latents"], tensors).to(device),
                None if embeds is None else embeds.to(device), stepper,
            )  # fmt: skip
            start, now = (tuple(_unpack(values[name], tensors)) for name in ("start", "now"))
            return cls(loop, values["cfg"], start, now), values["request"]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is not a checkpoint of a run ({error}); delete it, or give another path."
            ) from None


def fingerprint(*parts: Any) -> str:
    """sha256 of values: tensors by their bytes, everything else by its repr."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def states(generators: Sequence[torch.Generator]) -> tuple[Tensor, ...]:
    """The state of each generator."""
    return tuple(generator.get_state() for generator in generators)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A JSON value for anything a scheduler keeps; tensors go to `tensors` and leave their name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"array": _pack(torch.from_numpy(value.copy()), tensors)}
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name, "device": value.device.type}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, tensors) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _pack(item, tensors) for key, item in value.items()}}
    raise InputError(f"checkpoint= cannot keep the state of this scheduler: it holds a {type(value).__name__}.")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]].to(value["device"])
    if "array" in value:
        return _unpack(value["array"], tensors).numpy()
    if "list" in value:
        return [_unpack(item, tensors) for item in value["list"]]
    return {key: _unpack(item, tensors) for key, item in value["dict"].items()}
