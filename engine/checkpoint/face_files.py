"""The files of the face models in a checkpoint: where they are, and the tensors of those that are no ONNX."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..networks.bisenet import bisenet_state
from ..networks.eva import eva_state
from ..networks.retinaface import retinaface_state
from ..util.parsing import refuse_pointer, shorten

FACE_FOLDER = "face_encoder"
# Below it, by the name of the graph or ONNX Runtime session.
FACE_FILES = {
    "eva": "EVA02_CLIP_L_336_psz14_s6B.pt",
    "retinaface": "detection_Resnet50_Final.pth",
    "bisenet": "parsing_bisenet.pth",
    "scrfd": "models/antelopev2/scrfd_10g_bnkps.onnx",
    "arcface": "models/antelopev2/glintr100.onnx",
}
FACE_STATES = {"eva": eva_state, "retinaface": retinaface_state, "bisenet": bisenet_state}
ANTELOPE = "models/antelopev2/"


def locate_face_file(part: str, is_there: Callable[[str], bool]) -> str:
    """Where a face model is, relative to the checkpoint; where it should be, if it is nowhere.

    The models of antelopev2 may lie in a folder of that name in the folder of that name: so does its archive leave them
    when it is unpacked there.

    Args:
        is_there: whether the checkpoint has a file.
    """
    name = FACE_FILES[part]
    plain = f"{FACE_FOLDER}/{name}"
    nested = f"{FACE_FOLDER}/{name.replace(ANTELOPE, f'{ANTELOPE}antelopev2/')}"
    return nested if not is_there(plain) and is_there(nested) else plain


def read_face_state(file: Path, part: str) -> Mapping[str, Tensor]:
    """The tensors of a face model's .pt or .pth file, by the names that its network has; mapped where that can be.

    Raises:
        CheckpointError: it is damaged, or of something else.
    """
    try:
        with file.open("rb") as beginning:
            refuse_pointer(beginning.read(64))
        # Files from before PyTorch 1.6, such as facexlib's, are no archives and cannot be mapped.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        for wrapper in ("state_dict", "model"):
            state = state.get(wrapper, state)
        found = FACE_STATES[part](state)
    except Exception as error:  # torch.load raises whatever its unpickler trips over
        raise CheckpointError(f"{file} cannot be read ({shorten(error)}); download it again.") from None
    wrong = [name for name, value in found.items() if not isinstance(value, Tensor)]
    if wrong or not found:
        raise CheckpointError(f"{file} holds no weights of {part}; download it again.")
    return found
