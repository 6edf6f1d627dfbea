"""The two networks of antelopev2 under ONNX Runtime: here ArcFace, in detection.py the detector."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError

GPU_PROVIDERS = ("CUDAExecutionProvider", "ROCMExecutionProvider")


def providers(device: torch.device | str = "cpu") -> list[Any]:
    """ONNX Runtime's execution providers for a device, of those that this installation has: a name, or a name with its
    options, which tell the GPU.

    TensorRT's provider is never chosen: it builds an engine on first use, for two networks that take milliseconds.
    """
    import onnxruntime

    device, found = torch.device(device), []
    available = onnxruntime.get_available_providers()
    for name in GPU_PROVIDERS if device.type == "cuda" else ():
        if name in available:
            index = torch.cuda.current_device() if device.index is None else device.index
            found.append((name, {"device_id": index}))
    return [*found, "CPUExecutionProvider"]


def open_session(path: Path, device: torch.device | str = "cpu") -> Any:
    """An inference session; InputError, naming the file, when it is no readable ONNX model."""
    import onnxruntime

    if not path.is_file():
        raise InputError(f"{path}: no such face model; the checkpoint needs its face_encoder folder")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # initialisers without a use and the like are nothing a user can act on
    # A photo is a rare event: threads that spin while they wait for the next one only take cores from PyTorch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers(device))
    except Exception as error:  # onnxruntime's own classes differ between its versions
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: not a readable ONNX model ({first_line}); download it again") from error


class ArcFace:
    """glintr100.onnx: the identity embedding of an aligned face (Deng et al., arXiv:1801.07698).

    Numerically insightface's ArcFaceONNX (model_zoo/arcface_onnx.py), on the providers that exist.
    """

    def __init__(self, path: Path | str, device: torch.device | str = "cpu") -> None:
        self.path = Path(path)
        self.session = open_session(self.path, device)
        entry = self.session.get_inputs()[0]
        self.input_name: str = entry.name
        self.size: tuple[int, int] = (entry.shape[3], entry.shape[2])  # width, height: what OpenCV wants
        self.mean, self.std = (0.0, 1.0) if normalises_itself(self.path) else (127.5, 127.5)

    def embed(self, image_bgr: NDArray[np.uint8]) -> NDArray[np.float32]:
        """image_bgr: uint8 [H, W, 3], an aligned face of any size (it is resized). Returns float32 [1, 512]."""
        blob = cv2.dnn.blobFromImages([image_bgr], 1.0 / self.std, self.size, (self.mean,) * 3, swapRB=True)
        return self.session.run(None, {self.input_name: blob})[0]


def normalises_itself(path: Path) -> bool:
    """Whether the graph subtracts and scales its input: exports from MXNet do, exports from PyTorch do not.

    insightface's rule: a Sub and a Mul by name among the first eight nodes.
    """
    import onnx

    names = [node.name for node in onnx.load(str(path), load_external_data=False).graph.node[:8]]
    subtracts = any(name.startswith(("Sub", "_minus")) for name in names)
    scales = any(name.startswith(("Mul", "_mul")) for name in names)
    return subtracts and scales
