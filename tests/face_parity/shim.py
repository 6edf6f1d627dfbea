"""torchvision has no CPU build. Beside CPU-only PyTorch its compiled operators are missing; facexlib needs one, nms.

`install` declares what torchvision's import looks for, and gives nms its documented meaning, written independently of
the engine's.
"""

import sys

import torch
from torch import Tensor

_kept: list[torch.library.Library] = []


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes that stay, best first: each removes what overlaps it by more than the threshold."""
    order = scores.argsort(descending=True, stable=True).tolist()
    kept: list[int] = []
    for i in order:
        x0, y0, x1, y1 = boxes[i].tolist()
        for j in kept:
            u0, v0, u1, v1 = boxes[j].tolist()
            shared = max(0.0, min(x1, u1) - max(x0, u0)) * max(0.0, min(y1, v1) - max(y0, v0))
            if shared / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared) > threshold:
                break
        else:
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def install() -> None:
    if "torchvision" in sys.modules or _kept:
        return
    try:
        import torchvision  # a build that fits this PyTorch

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        return
    except (ImportError, RuntimeError, AttributeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", nms, "CPU")
    _kept.append(library)
    import torchvision

    # Its check asks whether the compiled library was loaded; the one operator that is used is there without it.
    torchvision.extension._assert_has_ops = lambda: None
    torchvision.ops.boxes._assert_has_ops = lambda: None
