"""The five face networks as plain PyTorch and ONNX Runtime: the oracle of every compiled set, and enough to run on."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from consisid.engine.checkpoint.face_files import FACE_FILES
from consisid.engine.errors import InputError
from consisid.engine.face.detection import Detections, Scrfd
from consisid.engine.face.recognition import ArcFace
from consisid.engine.networks.bisenet import BiSeNet, bisenet_state
from consisid.engine.networks.eva import EvaTower, eva_arguments, eva_state
from consisid.engine.networks.retinaface import RetinaFace, retinaface_backbone, retinaface_state


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """A .pt or .pth file's tensors, read with weights_only: it can hold no code. InputError, naming the file."""
    if not path.is_file():
        raise InputError(f"{path}: no such face model; the checkpoint needs its face_encoder folder")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: not a readable checkpoint ({first_line}); download it again") from error
    for wrapper in ("state_dict", "model", "module"):
        checkpoint = checkpoint.get(wrapper, checkpoint)
    return checkpoint


def eva_tower(state: dict[str, Tensor]) -> EvaTower:
    return EvaTower(**eva_arguments(state))


class EagerFaceModels:
    """The protocol FaceModels over a checkpoint's face_encoder folder.

    Args:
        folder: face_encoder.
        device: where the PyTorch networks run; ONNX Runtime uses what it has for it.
        dtype: of the EVA tower, as in the reference; the detectors stay in float32.
    """

    def __init__(self, folder: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        folder = Path(folder)
        self.device, self.dtype = device, dtype
        self._scrfd = Scrfd(folder / FACE_FILES["scrfd"], device)
        self._arcface = ArcFace(folder / FACE_FILES["arcface"], device)
        state = retinaface_state(load_checkpoint(folder / FACE_FILES["retinaface"]))
        self._retinaface = self.build(lambda: RetinaFace(retinaface_backbone(state)), state, torch.float32)
        state = bisenet_state(load_checkpoint(folder / FACE_FILES["bisenet"]))
        self._bisenet = self.build(BiSeNet, state, torch.float32)
        eva = eva_state(load_checkpoint(folder / FACE_FILES["eva"]))
        self._eva = self.build(lambda: eva_tower(eva), eva, dtype)

    def build(self, make: Callable[[], nn.Module], state: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
        with torch.device("meta"):
            network = make()
        tensors = {name: value.to(self.device, dtype).contiguous() for name, value in state.items()}
        network.load_state_dict(tensors, assign=True)
        return network.eval().requires_grad_(False)

    def scrfd(self, image_bgr: NDArray[np.uint8]) -> Detections:
        return self._scrfd.detect(image_bgr)

    def arcface(self, image_bgr: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._arcface.embed(image_bgr)

    def retinaface(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, points = self._retinaface(image.to(self.device))
        return boxes.cpu(), scores.cpu(), points.cpu()

    def bisenet(self, image: Tensor) -> Tensor:
        return self._bisenet(image.to(self.device)).cpu()

    def eva(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.cpu() for part in self._eva(image.to(self.device, self.dtype)))
