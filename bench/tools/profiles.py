"""Where the seconds of a step go, by part of the transformer, for the engine's graphs and for diffusers' modules."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ..core.timing import Probe, wait

# Part -> the engine's graphs, and the children of diffusers' ConsisIDTransformer3DModel.
PARTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "face extractor": (("face_extract",), ("local_facial_extractor",)),
    "folding of the face attention": (("face_fold",), ()),
    "face attention": (("face", "last_face"), ("perceiver_cross_attention",)),
    "modulation of the blocks": (("modulation",), ()),
    "blocks": (("block", "last_block"), ("transformer_blocks",)),
    "embeddings of text, image, time": (
        ("embed", "text_project", "image_embed", "time_embed"),
        ("patch_embed", "time_embedding"),
    ),
    "head": (("out_modulation", "head"), ("norm_final", "norm_out", "proj_out")),
}


def by_graph(probe: Probe) -> dict[str, float]:
    """Seconds by part of everything that a probe saw."""
    seconds = defaultdict[str, float](float)
    for call in probe.calls:
        seconds[call.graph] += probe.between(call.start, call.end)
    return {part: sum(seconds[graph] for graph in graphs) for part, (graphs, _) in PARTS.items()}


@contextmanager
def watching(transformer: nn.Module) -> Iterator[dict[str, float]]:
    """Seconds by part of diffusers' transformer, filled while the block runs; it waits for the device at each border.

    Keys and values of the face attention, and the modulation, are inside diffusers' modules and count there.
    """
    seconds = defaultdict[str, float](float)
    device = next(transformer.parameters()).device
    with ExitStack() as handles:
        for part, (_, children) in PARTS.items():
            for module in _modules(transformer, children):
                for handle in _timed(module, part, seconds, device):
                    handles.callback(handle.remove)
        yield seconds


def _modules(transformer: nn.Module, children: tuple[str, ...]) -> Iterator[nn.Module]:
    for name in children:
        child = transformer.get_submodule(name)
        yield from child if isinstance(child, nn.ModuleList) else [child]


def _timed(module: nn.Module, part: str, seconds: dict[str, float], device: Any) -> list[Any]:
    starts: list[float] = []

    def before(*_: Any) -> None:
        wait(device)
        starts.append(time.perf_counter())

    def after(*_: Any) -> None:
        wait(device)
        seconds[part] += time.perf_counter() - starts.pop()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
