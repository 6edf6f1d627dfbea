"""What a call of a graph allocates and computes, counted on tensors that have shapes and no data.

The graph's own module runs once on the meta device; every storage that an operator returns is counted while it lives.
What an operator takes for itself (workspaces of convolutions and matrix products) is not seen. What a compiler fuses
beyond our kernels allocates less than is counted here: an estimate from above, for eager and compiled alike.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import conv3d, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from consisid.kernels import whole, workspace

from ..graphs.graph import Graph, in_ff_chunks, weight_shapes
from ..graphs.table import graph_table
from ..graphs.trunk import blocks, in_turn, join_tokens
from ..networks.causal_conv import sum_of_conv2d
from ..shapes import VideoShape, chunks
from ..variants import Variant
from ..video import to_uint8
from .allocator import Event, peak_bytes

CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Count:
    """One call, or several.

    Attributes:
        inputs: bytes of what it takes, weights apart.
        events: what it asks of the memory and gives back, its outputs included, which it does not give back.
    """

    inputs: int
    events: tuple[Event, ...]

    @property
    def peak(self) -> int:
        """The most bytes that it holds at once beside its inputs."""
        return peak_bytes(self.events)


class Live(TorchDispatchMode):
    """Follows the storages that come and go while it is active.

    Attributes:
        events: every request and its end, in order.
    """

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()
        self.numbers = {tensor.untyped_storage()._cdata: -1 for tensor in known}
        self.events: list[Event] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        extra = workspace(packet.__name__, *args) if func.namespace == "consisid" else []
        if packet is torch.ops.aten.convolution and not _dense(args[0]):
            extra = [args[0].nbytes]  # convolution libraries read a copy
        numbers = range(len(self.events), len(self.events) + len(extra))
        self.events += zip(numbers, extra, strict=True)
        # Of a batch norm the first: with data, the statistics that it was given are not saved anew.
        for tensor in tree_leaves(out[:1] if packet is torch.ops.aten.native_batch_norm else out):
            if isinstance(tensor, Tensor):
                self._appeared(tensor.untyped_storage())
        self.events += [(number, 0) for number in numbers]
        return out

    def _appeared(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.numbers and storage.nbytes():
            self.numbers[key] = len(self.events)
            self.events.append((self.numbers[key], storage.nbytes()))
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.events.append((self.numbers.pop(key), 0))


def count(graph: Graph, sizes: Mapping[str, int], dtype: torch.dtype, fused: bool = False) -> Count:
    """Count the memory of one call of a graph.

    Args:
        sizes: its free ones, B samples, N steps, H x W pixels of a photo.
        fused: memory is that of our kernels, as on a GPU, instead of their references.
    """
    with without_data(fused):
        call = Fake({graph.name: graph}, dtype)
        inputs = call.inputs(graph, sizes)
        live = Live([*call.known, *inputs])
        with live:
            outputs = call(graph.name, *inputs)
        found = Count(_bytes(inputs), tuple(live.events))  # before the outputs are given back
        del outputs
        return found


def count_flops(graph: Graph, sizes: Mapping[str, int], dtype: torch.dtype) -> int:
    """FLOPs of the products, convolutions and attention of one call of a graph, by the references of our kernels.

    Attention is taken apart here into products, which are what of it counts.

    Args:
        sizes: as in `count`.
    """
    with torch.device("meta"), torch.no_grad():
        call = Fake({graph.name: graph}, dtype)
        inputs = call.inputs(graph, sizes)
        with FlopCounterMode(display=False) as counter:
            call(graph.name, *inputs)
        return counter.get_total_flops()


@lru_cache(maxsize=64)
def count_step(
    variant: Variant, shape: VideoShape, batch: int, samples: int, dtype: torch.dtype, rows: int = 1,
    fused: bool = False, apart: bool = False,
) -> tuple[Event, ...]:  # fmt: skip
    """What a prediction of the noise asks of the memory, from the latents on: all blocks in their order, fewer of them
    than there are, since each asks for the same as the one before.

    Args:
        batch: videos at once.
        samples: of a call of a block; `batch` times the halves of guidance that run at once.
        rows: pieces of the blocks' feed-forward.
        apart: the hidden state is kept apart, see prediction.Prediction.
    """
    t = variant.transformer
    layers = min(t.num_layers, 2 * t.cross_attn_interval + t.num_layers % t.cross_attn_interval)
    few = replace(variant, transformer=replace(t, num_layers=layers))
    table = {
        name: in_ff_chunks(graph, rows) if rows > 1 and graph.chunked else graph
        for name, graph in graph_table(few, shape).items()
    }
    with without_data(fused):
        call = Fake({name: graph for name, graph in table.items() if graph.stage == "denoise"}, dtype)
        latents, image = call.inputs(table["embed"], {"B": batch})
        hidden, modulation, cos, sin = call.inputs(table["block"], {"B": samples})
        text = hidden[:, : t.max_text_seq_length]
        _, head = call.inputs(table["head"], {"B": samples})
        face = call.inputs(table["face"], {"B": samples})[1:] if "face" in table else []
        if not face and "last_face" in table:
            face = call.inputs(table["last_face"], {"B": samples})[1:]
        keys, values = ([x] * few.transformer.num_cross_attn for x in face or (hidden, hidden))
        live = Live([*call.known, latents, image, hidden, modulation, cos, sin, head, *face])

        def put(x: Tensor) -> Tensor:
            return hidden.flatten()[: x.numel()].view(x.shape).copy_(x) if apart else x

        with live:
            tokens = [put(join_tokens(text, call("embed", latents, image)))]
            rows_of = modulation.expand(layers, *modulation.shape)
            video = in_turn([blocks(call, few.transformer, tokens, rows_of, cos, sin, keys, values, put)]).pop()
            noise = call("head", video, head)
        del noise, video
        return tuple(live.events)


@lru_cache(maxsize=64)
def count_decode(
    variant: Variant, latent: tuple[int, int], frames: int, dtype: torch.dtype, fused: bool = False
) -> tuple[Event, ...]:
    """What decoding frames of latents [1, 16, frames, *latent] chunk by chunk asks of the memory."""
    size = replace(
        VideoShape.of(variant, None, None, None), height=latent[0] * variant.vae.spatial_ratio,
        width=latent[1] * variant.vae.spatial_ratio, latent_height=latent[0], latent_width=latent[1],
        latent_frames=frames,
    )  # fmt: skip
    known = graph_table(variant, size)
    table: dict[str, Graph] = {name: known[name] for name in ("decode_first", "decode_next") if name in known}
    with without_data(fused):
        call = Fake(table, dtype)
        parts = [call.inputs(graph, {})[0] for graph in table.values()]
        live = Live([*call.known, *parts])
        with live:
            images, *caches = call.many("decode_first", parts[0])
            for _ in range(min(12, len(chunks(frames)) - 1)):  # the rest ask for the same
                to_uint8(images[0].transpose(0, 1))
                images, *caches = call.many("decode_next", parts[1], *caches)
            to_uint8(images[0].transpose(0, 1))
        return tuple(live.events)


class Fake:
    """Calls graphs with weights that have no data; those of every layer are the same."""

    def __init__(self, table: Mapping[str, Graph], dtype: torch.dtype):
        self.dtype = dtype
        self._modules = {name: graph.module() for name, graph in table.items()}
        self._weights = {
            name: {
                weight: torch.empty(shape, dtype=table[name].dtype(dtype))
                for weight, shape in weight_shapes(module).items()
            }
            for name, module in self._modules.items()
        }
        self.known = [tensor for weights in self._weights.values() for tensor in weights.values()]

    def inputs(self, graph: Graph, sizes: Mapping[str, int]) -> list[Tensor]:
        """The inputs of a graph; of those whose shapes only a trial run tells none."""
        dtype = graph.dtype(self.dtype)
        return [
            torch.empty([sizes[n] if isinstance(n, str) else n for n in spec.shape], dtype=spec.dtype or dtype)
            for spec in graph.specs().values()
        ]

    @property
    def weights(self) -> dict[str, list[Tensor]]:
        """Of each graph, in the order of its module."""
        return {name: list(tensors.values()) for name, tensors in self._weights.items()}

    def many(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = functional_call(self._modules[name], self._weights[name], inputs)
        return found

    def __call__(self, name: str, *inputs: Tensor, layer: int = 0) -> Tensor:
        found: Tensor = functional_call(self._modules[name], self._weights[name], inputs)
        return found


@contextmanager
def without_data(fused: bool) -> Iterator[None]:
    """Tensors that are made inside have no data; `fused`: memory is that of our kernels."""
    with torch.device("meta"), torch.no_grad(), _AsWithData(), whole() if fused else nullcontext():
        yield


class _AsWithData(TorchFunctionMode):
    """What is done otherwise where there are data: attention is whole and stores no scores, and convolutions in float32
    are those of a CPU, which ask for more than a GPU's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return CPU_ATTENTION(*args, **kwargs)[0]
        if func is conv3d and args[0].dtype == torch.float32:
            x, weight, bias = args
            return sum_of_conv2d(x, weight, bias, kwargs["padding"][1])
        return func(*args, **kwargs)


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.is_contiguous(
        memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    )


def _bytes(tensors: list[Tensor]) -> int:
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
