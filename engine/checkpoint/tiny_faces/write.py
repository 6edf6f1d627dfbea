"""The face models of TINY: small files in the layout of ConsisID-preview's face_encoder folder.

They are fixtures and say so. They have the names, layouts and outputs of the real files and none of their skill: the
detectors and the parser answer to skin colour, EVA and ArcFace are seeded random networks. The same seed gives the same
bytes.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...networks.eva import EvaTower
from ...networks.layers import BatchNorm
from ..face_files import FACE_FILES
from .onnx_models import write_arcface, write_scrfd
from .torch_models import tiny_bisenet, tiny_retinaface


def write_face_models(folder: Path, seed: int, eva_width: int = 64, eva_layers: int = 21) -> None:
    """Write folder/face_encoder.

    Args:
        folder: of the checkpoint; face_encoder is made in it.
        seed: of the random weights, EVA's and ArcFace's; the other three networks are set by hand and do not vary.
        eva_width: width of the EVA tower's tokens, a multiple of 64; the face tokens' width.
        eva_layers: blocks of the EVA tower; at least 21, because the last hidden state enters block 20.
    """
    root = Path(folder) / "face_encoder"
    (root / FACE_FILES["scrfd"]).parent.mkdir(parents=True, exist_ok=True)
    save_state(tiny_eva(seed, eva_width, eva_layers), root / FACE_FILES["eva"])
    save_state(tiny_retinaface(), root / FACE_FILES["retinaface"])
    save_state(tiny_bisenet(), root / FACE_FILES["bisenet"])
    write_arcface(root / FACE_FILES["arcface"], seed)
    write_scrfd(root / FACE_FILES["scrfd"])


def tiny_eva(seed: int, width: int, layers: int) -> dict[str, Tensor]:
    """The state dict of a narrow tower, named as in the real file: below `visual.`."""
    with torch.device("meta"):
        # The ratio of EVA02-CLIP-L: 2730 hidden channels for 1024.
        tower = EvaTower(width, layers, mlp_hidden=int(width * 2.6667))
    return {f"visual.{name}": value for name, value in seeded_weights(tower, seed).items()}


def seeded_weights(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights for every parameter and running statistic of a module (which may be on the meta device).

    Matrices keep the variance of their input, so that signals neither die nor explode over depth; the scale of norms is
    near one and everything with one dimension near zero.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.LayerNorm | BatchNorm)}
    state: dict[str, Tensor] = {}
    for name, like in module.state_dict().items():
        value = torch.randn(like.shape, generator=generator)
        if name.endswith("running_var") or name in norms:
            state[name] = 1 + 0.1 * value.clamp(-3, 3)
        elif like.ndim == 1 or name.endswith(("cls_token", "pos_embed")):
            state[name] = 0.02 * value
        else:
            state[name] = value / like[0].numel() ** 0.5
    return state


def save_state(state: Mapping[str, Tensor], path: Path) -> None:
    """A plain dict of tensors, loadable with weights_only=True; the bytes do not depend on the folder."""
    torch.save(dict(state), path)
