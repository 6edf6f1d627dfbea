"""What a client asks for: fields of a form or of JSON, checked and turned into what a worker takes."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..errors import one_line, shown
from ..shortcuts import Shortcuts
from .refusals import Refusal, refusal_of
from .worker import Model

LONGEST_PROMPT = 10_000


def as_json(value: Any) -> Any:
    """A field of a form that holds JSON."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


class Reference(BaseModel):
    """A photo by its address, or as a data: address."""

    model_config = ConfigDict(extra="forbid")
    image_url: str | None = Field(None, max_length=64 * 2**20)
    file_id: str | None = Field(None, max_length=100)


class CharacterReference(BaseModel):
    """A stored person."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(max_length=100)


class VideoFields(BaseModel):
    """POST /v1/videos besides an uploaded photo. What OpenAI's API does not have is marked with a star."""

    model_config = ConfigDict(extra="forbid")
    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT, description="What the person does, and where.")
    model: str | None = Field(None, max_length=200, description="The name at /v1/models; default that one.")
    size: str | None = Field(None, pattern=r"^[0-9]{1,5}x[0-9]{1,5}$", description="WIDTHxHEIGHT in pixels.")
    seconds: float | None = Field(None, gt=0, le=3600, description="How long; the nearest that the model makes.")
    characters: Annotated[list[CharacterReference] | None, BeforeValidator(as_json)] = Field(
        None, max_length=8, description="One stored person, as {id: ...}."
    )
    character: str | None = Field(None, max_length=100, description="* The id of a stored person.")
    face: str = Field("largest", max_length=100, description="* Who in the photo: largest, center, a number or a box.")
    negative_prompt: str | None = Field(None, max_length=LONGEST_PROMPT, description="* What to steer away from.")
    num_frames: int | None = Field(None, ge=1, le=10_000, description="* Instead of seconds.")
    num_inference_steps: int | None = Field(None, ge=1, le=1000, description="* Steps of the loop.")
    guidance_scale: float | None = Field(None, ge=0, le=100, description="* Weight of the prompt.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="* The same seed gives the same video.")
    fps: float | None = Field(None, ge=1, le=120, description="* Of the file; default the model's.")
    cache: float | str | None = Field(None, description="* Step cache: a threshold such as 0.15, or a factor: 2x.")
    lora: str | None = Field(None, max_length=200, description="* The name of a LoRA of the server.")
    lora_weight: float | None = Field(None, ge=-10, le=10, description="* Of the LoRA; default 1.")
    deadline: float | None = Field(None, gt=0, le=7 * 86400, description="* Seconds until it has to be ready.")
    input_reference: Annotated[Reference | None, BeforeValidator(as_json)] = None

    @property
    def character_id(self) -> str | None:
        """Of the stored person; raises Refusal for several."""
        ids = [each.id for each in self.characters or []] + ([self.character] if self.character else [])
        if len(ids) > 1:
            raise Refusal(400, "several_people", "A video shows one person; give one character.", "characters")
        return ids[0] if ids else None


def fields_of(values: Mapping[str, Any]) -> VideoFields:
    """Raises Refusal with a sentence for the first field that does not fit."""
    try:
        return VideoFields.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise Refusal(400, "unknown_field", f"There is no field called {shown(name)}.", one_line(name)) from None
        if first["type"] == "missing":
            raise Refusal(400, "missing_field", f"The field {name} is missing.", name) from None
        reason = one_line(first["msg"], 200)
        raise Refusal(400, "invalid_value", f"{name}: {reason}, this is {shown(first['input'])}.", name) from None


def unbracketed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Fields of a form as OpenAI's clients write nested values: `input_reference[image_url]`, `characters[][id]`.

    Raises:
        Refusal: a field that is there twice, or a nested one where it can be none.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        head, _, rest = name.partition("[")
        if head == "characters" and rest in ("][id]", "0][id]"):
            found.setdefault("characters", []).append({"id": value})
            continue
        if head == "input_reference" and rest in ("image_url]", "file_id]"):
            found.setdefault("input_reference", {})[rest[:-1]] = value
            continue
        if name in found:
            raise Refusal(400, "invalid_value", f"The field {shown(name)} is there twice.", one_line(name, 100))
        found[name] = value
    return found


def options_of(fields: VideoFields, model: Model) -> dict[str, Any]:
    """The options of ConsisID.generate; raises Refusal for what cannot be."""
    options: dict[str, Any] = {}
    for name in ("negative_prompt", "num_frames", "num_inference_steps", "guidance_scale", "seed"):
        if (value := getattr(fields, name)) is not None:
            options[name] = value
    if fields.size is not None:
        options["width"], options["height"] = (int(side) for side in fields.size.split("x"))
    if fields.seconds is not None:
        if fields.num_frames is not None:
            raise Refusal(400, "invalid_value", "Give seconds or num_frames, one of the two.", "seconds")
        options["num_frames"] = frames_of(fields.seconds, model)
    if fields.cache is not None:
        options["shortcuts"] = {"cache": cache_of(fields.cache)}
    return options


def frames_of(seconds: float, model: Model) -> int:
    """The number of frames of the form 8k + 1 that lasts nearest to so long; the engine's own, where that is it."""
    frames = round(seconds * model.fps)
    return model.num_frames if abs(model.num_frames - frames) <= model.fps // 2 else max(0, round(frames / 8)) * 8 + 1


def cache_of(value: float | str) -> float | str:
    """A threshold or a factor; raises Refusal for neither."""
    found = value
    if isinstance(value, str):
        try:
            found = float(value)
        except ValueError:
            found = value
    try:
        Shortcuts.of({"cache": found})
    except Exception as error:
        if not isinstance(error, ValueError):
            raise
        raise refusal_of(error, "cache") from None  # type: ignore[arg-type]
    return found
