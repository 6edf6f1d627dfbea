"""A run's finished steps in a file of ours (sealed.py), written whole or not at all."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le, Len
from torch import Tensor
from typing_extensions import TypedDict

from ..denoise import CFG_MODES, LoopState
from ..errors import InputError, WriteError
from ..lora.weights import Active, key_of
from ..util.files import unwritable
from ..util.parsing import Unreadable, shorten, validate
from ..util.sealed import load_sealed, save_sealed
from .options import Options

FORMAT = 3


class Header(TypedDict):
    """What the file of a run says besides its tensors; Any is what `_pack` makes."""

    format: int
    request: Annotated[str, Len(64, 64)]
    cfg: str
    guidance: float
    steps: Annotated[int, Ge(1), Le(100_000)]
    latents: dict[str, Any]
    prompt_embeds: dict[str, Any] | None
    stepper: dict[str, Any]
    start: dict[str, Any]
    now: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """A run after a step.

    Attributes:
        loop: where the loop goes on.
        cfg: the mode that the steps ran in; the rest has to run in it too, for the same bytes.
        guidance: the weight of the prompt, which a callback may have changed.
        start: states of the generators before the run, from which the stages before the loop draw the same again.
        now: states of the generators after the step.
    """

    loop: LoopState
    cfg: str
    guidance: float
    start: tuple[Tensor, ...]
    now: tuple[Tensor, ...]

    def save(self, path: Path, request: str) -> None:
        """Write the snapshot of a request.

        Raises:
            InputError: a scheduler that keeps something which cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        values = {
            "format": FORMAT, "request": request, "cfg": self.cfg, "guidance": self.guidance,
            "steps": self.loop.steps,
            "latents": _pack(self.loop.latents, tensors),
            "prompt_embeds": _pack(self.loop.prompt_embeds, tensors),
            "stepper": _pack(self.loop.stepper, tensors),
            "start": _pack(self.start, tensors), "now": _pack(self.now, tensors),
        }  # fmt: skip
        save_sealed(path, tensors, values)

    @classmethod
    def load(cls, path: Path, device: torch.device, start: Sequence[Tensor]) -> "tuple[Snapshot, str]":
        """A snapshot and the request that it is of.

        Args:
            start: states of generators such as the run has.

        Raises:
            InputError: a file that is something else, damaged, or was changed.
        """
        try:
            tensors, values = load_sealed(path)
            if values.get("format") != FORMAT:
                raise Unreadable(f"its format is {shorten(values.get('format'), 20)}, here {FORMAT}")
            header: Header = validate(Header, values)
            stepper = _unpack(header["stepper"], tensors)
            if stepper["prediction"] is not None:
                stepper["prediction"] = stepper["prediction"].to(device)
            timesteps = stepper["scheduler"].get("timesteps")
            if isinstance(timesteps, Tensor) and header["steps"] > len(timesteps):
                raise Unreadable(f"it has {header['steps']} finished steps of {len(timesteps)}")
            embeds = _unpack(header["prompt_embeds"], tensors)
            loop = LoopState(
                header["steps"], _unpack(header["latents"], tensors).to(device),
                None if embeds is None else embeds.to(device), stepper,
            )  # fmt: skip
            before, now = tuple(_unpack(header["start"], tensors)), tuple(_unpack(header["now"], tensors))
            kinds = [[(state.dtype, state.shape) for state in states] for states in (start, before, now)]
            if kinds[1] != kinds[0] or kinds[2] != kinds[0]:
                raise Unreadable("its random numbers are from other generators")
            if header["cfg"] not in CFG_MODES:
                raise Unreadable(f"{shorten(repr(header['cfg']), 20)} is no mode of guidance")
            if not isfinite(header["guidance"]):
                raise Unreadable("its weight of the prompt is not finite")
            return cls(loop, header["cfg"], header["guidance"], before, now), header["request"]
        except FileNotFoundError as error:
            reason = shorten(error.strerror or error)
        except Unreadable as error:
            reason = str(error)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"its state is of another kind: {shorten(repr(error), 80)}"
        raise InputError(f"{path} is not a checkpoint of a run ({reason}); delete it, or give another path.")


class RunFile:
    """The file that a run's finished steps are kept in, if the caller wants one. A run goes on from the file of the
    same request only.

    Attributes:
        path: of the file; None for a run that keeps none.
    """

    def __init__(self, path: str | Path | None):
        self.path = None if path is None else Path(path)
        self._expected, self._request = "", ""

    def read(self, device: torch.device, start: Sequence[Tensor]) -> Snapshot | None:
        """What the file has, None where there is none; see Snapshot.load."""
        if self.path is None:
            return None
        try:
            self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:  # a name that is too long, or has a null byte in it
            raise unwritable(self.path, error) from None
        snapshot, self._expected = Snapshot.load(self.path, device, start)
        return snapshot

    def check(self, spec: str, loras: Active, scheduler: Any, options: Options, conditions: Sequence[Any]) -> None:
        """Raises InputError where what was read is of another request.

        Args:
            spec: of the engine.
            conditions: all that the latents depend on besides.
        """
        if self.path is None:
            return
        names = ("num_inference_steps", "schedule", "guidance_scale", "use_dynamic_cfg", "eta", "seed")
        chosen = [getattr(options, name) for name in names]
        if options.left_out.names:
            chosen.append(options.left_out)
        self._request = fingerprint(spec, key_of(loras), scheduler_key(scheduler), *chosen, *conditions)
        if self._expected not in ("", self._request):  # nothing is expected of what this very call has kept
            raise InputError(f"{self.path} is the checkpoint of another request; delete it, or give another path.")

    def write(self, snapshot: Snapshot) -> None:
        """Keep a snapshot; where it cannot be written, a warning says so: the video is worth more than what would help
        if it were lost."""
        if self.path is not None:
            try:
                snapshot.save(self.path, self._request)
            except WriteError as error:
                warnings.warn(f"{error} The run goes on without this checkpoint.", stacklevel=2)

    def remove(self) -> None:
        """The run is finished. Where the file cannot be removed a warning says so."""
        try:
            if self.path is not None and self.path.exists():
                self.path.unlink()
        except OSError as error:
            warnings.warn(f"{self.path} cannot be removed ({error.strerror}), and its run is finished.", stacklevel=2)


def scheduler_key(scheduler: Any) -> str:
    """A scheduler's class and settings: what makes the same steps of the same predictions."""
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return f"{type(scheduler).__name__} {json.dumps(settings, sort_keys=True, default=repr)}"


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
