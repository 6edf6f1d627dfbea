"""An engine as other servers' plug-ins use it: one photo, one prompt, the frames."""

from typing import Any

from torch import Tensor

from ..api import ConsisID
from ..errors import InputError
from ..flags import face_choice

PASSED = ("negative_prompt", "height", "width", "num_frames", "num_inference_steps", "guidance_scale", "seed")


def video(engine: ConsisID, prompt: str, photo: Any, character: Any, asked: Any) -> Tensor:
    """Frames, float32 [F, 3, H, W] in [0, 1].

    Args:
        photo: a PIL image, a path, or a list with one of them; None for a character.
        character: the id of a stored person; None for a photo.
        asked: an object or a mapping whose values of PASSED are taken, where they are not None.

    Raises:
        ConsisIDError: it cannot be made.
    """
    if (photo is None) == (character is None):
        raise InputError("ConsisID needs one person: a photo as input_reference, or the id of a character.")
    person: Any = photo[0] if isinstance(photo, list | tuple) and len(photo) == 1 else photo
    if character is not None:
        from .characters import People

        face, photos = People().photos(str(character))
        person = engine.identify(photos, face=face_choice(face))
    values = asked if isinstance(asked, dict) else {name: getattr(asked, name, None) for name in PASSED}
    options: dict[str, Any] = {name: values[name] for name in PASSED if values.get(name) is not None}
    frames: Tensor = engine.generate(person, prompt, output_type="pt", **options).frames
    return frames.float().cpu()
