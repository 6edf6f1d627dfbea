"""A graph as an ONNX file: calls of kernels are functions of domain `consisid`, weights are constants beside the file.

A graph is traced and translated without data, once, with its weights as inputs (`skeleton`); `write` makes constants of
them, tensor by tensor. What depends on weights alone (sums of kernels, transposes, position tables) is computed then,
by PyTorch, and is not in the file.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto
from onnxscript import optimizer
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.traceback import preserve_node_meta

from consisid import kernels
from consisid.engine.backends.inductor import EXAMPLE_SIZES, SIZES, trace
from consisid.engine.graphs.graph import Graph
from consisid.engine.networks.vae_decoder import SpatialNorm, Upsample

from .functions import DOMAIN, OPSET, attention, protos

TYPES = {torch.float32: TensorProto.FLOAT, torch.bfloat16: TensorProto.BFLOAT16, torch.float16: TensorProto.FLOAT16,
         torch.int64: TensorProto.INT64, torch.int32: TensorProto.INT32, torch.bool: TensorProto.BOOL}  # fmt: skip
SOURCE = "source"  # the key of a node's metadata
DERIVED = "derived_"  # begins the names of constants that are computed from weights


@dataclass(frozen=True)
class Skeleton:
    """An ONNX model whose constants are still inputs.

    Attributes:
        model: with the inputs of the graph, then its constants.
        constants: their names, in order: of a weight, or DERIVED and a number.
        nodes: what computes them in `program`.
        program: the traced graph, weights last among its inputs.
        weights: the names of its weights.
    """

    model: onnx.ModelProto
    constants: tuple[str, ...]
    nodes: tuple[fx.Node, ...]
    program: fx.GraphModule
    weights: tuple[str, ...]


def skeleton(graph: Graph, dtype: torch.dtype, sizes: Mapping[str, int] | None = None) -> Skeleton:
    """The ONNX model of a graph without its constants.

    Args:
        dtype: that the engine runs in.
        sizes: of dimensions that are to be fixed; the others stay symbols with the names that Spec gives them.
    """
    graph = replace(graph, make=partial(_without_writes, graph), inputs=fixed(graph, sizes or {}), more_inputs=None)
    with kernels.whole():
        program = trace(graph, torch.device("meta"), dtype).graph_module
    weights = tuple(graph.weights)
    nodes = tuple(_frontier(program, len(weights)))
    placeholders = program.graph.find_nodes(op="placeholder")
    named = dict(zip(placeholders[len(placeholders) - len(weights) :], weights, strict=True))
    constants = tuple(named.get(node, f"{DERIVED}{i}") for i, node in enumerate(nodes))
    model = _translate(graph, graph.dtype(dtype), program, nodes, constants, len(weights))
    return Skeleton(model, constants, nodes, program, weights)


def fixed(graph: Graph, sizes: Mapping[str, int]) -> Mapping[str, Any]:
    """The specs of a graph with some of its symbols fixed."""
    return {
        name: replace(
            spec, shape=tuple(sizes.get(size, size) if isinstance(size, str) else size for size in spec.shape)
        )
        for name, spec in graph.specs().items()
    }


def _without_writes(graph: Graph) -> nn.Module:
    module = graph.make()
    for part in module.modules():
        if isinstance(part, Upsample | SpatialNorm):
            part.in_place = False
    return module


def _arguments(node: fx.Node) -> list[fx.Node]:
    return list(node.all_input_nodes)


def _constant(program: fx.GraphModule, weights: int) -> set[fx.Node]:
    """The nodes that no input of the graph reaches."""
    placeholders = program.graph.find_nodes(op="placeholder")
    found = set(placeholders[len(placeholders) - weights :])
    for node in program.graph.nodes:
        if node.op in ("call_function", "get_attr") and all(argument in found for argument in _arguments(node)):
            found.add(node)
    return found


def _frontier(program: fx.GraphModule, weights: int) -> Iterator[fx.Node]:
    """The constant tensors that the rest of the graph reads."""
    constant = _constant(program, weights)
    for node in program.graph.nodes:
        if node in constant and isinstance(node.meta.get("val"), Tensor) and any(u not in constant for u in node.users):
            yield node


class _OnCpu(fx.Interpreter):
    """Runs a traced graph: what was traced on no device is made on the CPU."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        return super().call_function(target, args, kwargs)  # type: ignore[arg-type]


class _Calls(_OnCpu):
    """Runs a traced graph again, with each call of a kernel as a node that only ONNX knows."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if getattr(target, "namespace", None) != DOMAIN.domain:
            return super().call_function(target, args, kwargs)
        from consisid.kernels import ops

        name = target.name().partition("::")[2]
        outputs = ops.FAKES[name](*args)
        several = isinstance(outputs, tuple)
        likes = outputs if several else (outputs,)
        given = list(zip(target._schema.arguments, args, strict=False))  # those at their defaults are left out
        found = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN.domain}::{name}",
            [value for _, value in given if isinstance(value, Tensor)],
            {argument.name: value for argument, value in given if not isinstance(value, Tensor)},
            dtypes=[like.dtype for like in likes],
            shapes=[like.shape for like in likes],
            version=DOMAIN.version,
        )
        return tuple(found) if several else found[0]


class _Rest(nn.Module):
    """What of a traced graph is left when its constants are given: inputs, then constants."""

    def __init__(self, program: fx.GraphModule, nodes: Sequence[fx.Node], weights: int):
        super().__init__()
        self.hidden = (program, nodes)
        self.skipped = dict.fromkeys(_constant(program, weights))

    def forward(self, *tensors: Tensor) -> Any:
        program, nodes = self.hidden
        count = len(tensors) - len(nodes)
        known = self.skipped | dict(zip(nodes, tensors[count:], strict=True))
        with preserve_node_meta():  # the lines of source that the nodes came from
            outputs = _Calls(program).run(*tensors[:count], *[None] * len(known), initial_env=known)
        # ONNX has one name for a tensor: a constant that is an output is copied.
        return tuple(x.clone() if any(x is given for given in tensors) else x for x in outputs)


def _translate(
    graph: Graph, dtype: torch.dtype, program: fx.GraphModule, nodes: Sequence[fx.Node], constants: Sequence[str],
    weights: int,
) -> onnx.ModelProto:  # fmt: skip
    specs = graph.specs()
    with FakeTensorMode():  # without data, and on a device: the nodes of ONNX give tensors on the CPU
        examples = [spec.example(EXAMPLE_SIZES, dtype, "cpu") for spec in specs.values()]
        examples += [torch.empty(node.meta["val"].shape, dtype=node.meta["val"].dtype) for node in nodes]
    symbols = {name: torch.export.Dim(name, min=least, max=most) for name, (_, least, most) in SIZES.items()}
    free: list[Any] = [
        {i: symbols[size] for i, size in enumerate(spec.shape) if isinstance(size, str)} for spec in specs.values()
    ]
    free += [None] * len(nodes)
    with torch.no_grad():
        rest = torch.export.export(
            _Rest(program, nodes, weights), tuple(examples), dynamic_shapes=(tuple(free),), strict=False
        )
    made = torch.onnx.export(
        rest, (), opset_version=OPSET, optimize=False, verbose=False, input_names=[*specs, *constants],
        custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: attention},
    )  # fmt: skip
    assert made is not None
    optimizer.optimize_ir(made.model, num_iterations=1)
    model = made.model_proto
    for node in model.graph.node:
        _keep_source(node)
    for value, spec in zip(model.graph.input, specs.values(), strict=False):
        for dim, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
            if isinstance(size, str):
                dim.dim_param = size
    model.functions.extend(protos({node.op_type for node in model.graph.node if node.domain == DOMAIN.domain}))
    if model.functions and DOMAIN.domain not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN.domain, DOMAIN.version))
    return model


def _keep_source(node: onnx.NodeProto) -> None:
    """Of all that the exporter noted about a node leave where it came from: "transformer.py:158" under SOURCE."""
    noted = {entry.key: entry.value for entry in node.metadata_props}
    frames = re.findall(r'File "([^"]+)", line (\d+)', noted.get("pkg.torch.onnx.stack_trace", ""))
    own = [f"{Path(file).name}:{line}" for file, line in frames if "torch" not in Path(file).parts]
    del node.metadata_props[:]
    node.doc_string = ""
    if own:
        node.metadata_props.add(key=SOURCE, value=own[-1])


@torch.no_grad()
def values(made: Skeleton, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """The constants of a skeleton by name, on the CPU, from weights in the order of Graph.weights."""
    graph = made.program.graph
    placeholders = graph.find_nodes(op="placeholder")
    own = placeholders[len(placeholders) - len(weights) :]
    interpreter = _OnCpu(made.program, garbage_collect_values=False)
    interpreter.env = dict(zip(own, weights, strict=True))
    constant = _constant(made.program, len(weights))
    for node in graph.nodes:
        if node in constant and node not in interpreter.env:
            interpreter.env[node] = interpreter.run_node(node)
    return {name: interpreter.env[node] for name, node in zip(made.constants, made.nodes, strict=True)}


def write(made: Skeleton, weights: Sequence[Tensor], file: Path) -> None:
    """`file` with the constants in it bound to weights, their bytes in the file of that name and ".data".

    Args:
        weights: on the CPU, in the dtype of the graph, in the order of Graph.weights.
    """
    model = onnx.ModelProto()
    model.CopyFrom(made.model)
    inputs = {value.name: value for value in model.graph.input}
    data = file.with_name(file.name + ".data")
    with data.open("wb") as out:
        for name, tensor in values(made, weights).items():
            model.graph.input.remove(inputs[name])
            model.graph.initializer.append(_external(name, tensor, out, data.name))
    onnx.save(model, file)


def _external(name: str, tensor: Tensor, out: Any, location: str) -> TensorProto:
    tensor = tensor.contiguous()
    proto = TensorProto(name=name, dims=list(tensor.shape), data_type=TYPES[tensor.dtype])
    if tensor.numel() == 0:  # there is nothing to point at
        proto.raw_data = b""
        return proto
    proto.data_location = TensorProto.EXTERNAL
    offset = -(-out.tell() // 4096) * 4096  # so that a reader can map it
    out.seek(offset)
    out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    for key, value in (("location", location), ("offset", offset), ("length", tensor.nbytes)):
        proto.external_data.add(key=key, value=str(value))
    return proto
