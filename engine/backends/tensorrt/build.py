"""ONNX file -> engine file, by either TensorRT: parsing, the choices of a build, and what it says of the result."""

import ctypes
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import BackendError
from ...util.files import atomic_file
from .library import PROFILES, BuildOptions, Library
from .plugins import register

STORED = 2**28  # bytes of scores in float32 that may be stored
MEMORY = re.compile(r"out ?of ?memory|bad_alloc|failed to allocate", re.IGNORECASE)


@dataclass(frozen=True)
class Built:
    """An engine file as its builder describes it.

    Attributes:
        seconds: of parsing and building.
        bytes: of the file.
        scratch: bytes of device memory that a call takes beside inputs, outputs and weights; of the largest profile.
        weights: bytes of weights.
        layers: kernels of the first profile.
        fused: those of them that are attention without stored scores.
    """

    seconds: float
    bytes: int
    scratch: int
    weights: int
    layers: int
    fused: int


def build(backend: Library, onnx: Path, file: Path, options: "BuildOptions") -> Built:
    """Write the engine of `onnx` to `file`.

    Raises:
        BackendError: an operator that the library does not take, with its name and the line of source that it came
            from; a target that it cannot build for; or a builder that gave up, with its reason.
    """
    api, log = backend.api, backend.log
    log.clear()
    start = time.perf_counter()
    try:
        builder = api.Builder(log)
    except Exception as error:  # pybind11 reports a failed initialisation with whatever the library threw
        raise BackendError(
            f"{backend.name} cannot start here ({log.errors[-1] if log.errors else error}); check the NVIDIA driver."
        ) from error
    plugins = _plugins(backend, options)
    network = _parse(backend, builder, onnx, options)
    config = _configure(backend, builder, network, options)
    cache = _cache(config, options.timing_cache)
    try:
        plan = builder.build_serialized_network(network, config)
    except MemoryError:
        plan = None
        log.errors.append("out of memory")
    if plan is None:
        raise refusal(backend.name, onnx.stem, log.errors)
    with atomic_file(file) as aside, aside.open("wb") as out:
        out.write(plan)
    plugins.clear()  # the builder is done with them
    if cache is not None and options.timing_cache is not None:
        with atomic_file(options.timing_cache) as aside:
            aside.write_bytes(config.get_timing_cache().serialize())
    return described(log.lines, time.perf_counter() - start, file.stat().st_size)


def _plugins(backend: Library, options: "BuildOptions") -> list[Any]:
    """The plugins of a build, known to the library for as long as the list is kept.

    Raises:
        BackendError: TensorRT for RTX could not find its own library, and would end the process.
    """
    if not options.plugins:
        return []
    if backend.package == "tensorrt_rtx":
        try:
            ctypes.CDLL("libtensorrt_rtx.so")
        except OSError:
            raise BackendError(
                "The ONNX parser of TensorRT for RTX opens libtensorrt_rtx.so for a plugin, and the wheel has it as "
                "libtensorrt_rtx.so.1 only; link that file under the name without .1 in a folder of LD_LIBRARY_PATH."
            ) from None
    # Code for an older GPU runs on newer ones too.
    targets = options.targets or ("sm_{}{}".format(*torch.cuda.get_device_capability()),)
    return register(backend, options.plugins, min(int(target.removeprefix("sm_")) for target in targets))


def refusal(name: str, graph: str, errors: Sequence[str]) -> BackendError:
    """The error of a builder that gave no engine."""
    if any(MEMORY.search(error) for error in errors):
        return BackendError(
            f"{name} ran out of memory while it built {graph}; put fewer layers in a shard (--layers-per-shard), or "
            "build where there is more memory."
        )
    reason = errors[-1] if errors else "it gave no reason"
    return BackendError(f"{name} refused to build {graph}: {reason}; build that graph with --backend inductor.")


def described(lines: Sequence[str], seconds: float, size: int) -> Built:
    """What the builder's own lines say of an engine."""
    text = "\n".join(lines)

    def largest(what: str) -> int:
        return max((int(found) for found in re.findall(rf"{what}: (\d+) bytes", text)), default=0)

    kernels = [name for name in re.findall(r"^Name: (\S+), LayerType:", text, re.MULTILINE) if not _later(name)]
    return Built(
        seconds=seconds,
        bytes=size,
        scratch=largest("Total Activation Memory"),
        weights=largest("Total Weights Memory"),
        layers=len(kernels),
        fused=sum("mha" in name for name in kernels),
    )


def _later(kernel: str) -> bool:
    """Whether a kernel belongs to a profile after the first."""
    profile = re.search(r"_myl(\d+)_", kernel)
    return profile is not None and profile[1] != "0"


def _parse(backend: Library, builder: Any, onnx: Path, options: "BuildOptions") -> Any:
    api = backend.api
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, backend.log)
    if options.plugins:  # otherwise a function of the file wins over a plugin of its name
        parser.set_flag(api.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise unsupported(backend.name, onnx, errors)
    _let_small_attention_be_stored(api, network)
    return network


def _let_small_attention_be_stored(api: Any, network: Any) -> None:
    """Let attention run in parts where no fused kernel takes it (a head of 16, float32), if its scores are small.

    What is large stays fused, or the build fails: stored scores of joint attention would be 61 GB.
    """
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == api.LayerType.ATTENTION_INPUT:
            layer.__class__ = api.IAttentionInputLayer  # how the bindings reach what a layer is
            query, key = tuple(layer.get_input(0).shape), tuple(layer.get_input(1).shape)
            if 4 * abs(query[0]) * query[1] * query[2] * key[2] <= STORED:
                layer.attention.decomposable = True


def unsupported(name: str, onnx: Path, errors: Sequence[Any]) -> BackendError:
    """The error of a file that the parser does not take."""
    if not errors:
        return BackendError(f"{name} cannot read {onnx}; export the graph again.")
    first = errors[0]
    node, kind = first.node_name(), first.node_operator()
    place = _source(onnx, [*first.local_function_stack(), node])
    came = f", from {place}," if place else ""
    return BackendError(
        f"{name} does not take the node {node} ({kind}){came} of {onnx.stem}: {first.desc()}; build that graph with "
        "--backend inductor."
    )


def _source(onnx: Path, names: Sequence[str]) -> str:
    """The line of source of the first of these nodes that has one."""
    from onnx import load

    lines = {
        node.name: entry.value
        for node in load(onnx, load_external_data=False).graph.node
        for entry in node.metadata_props
        if entry.key == "source"
    }
    return next((lines[name.split(" ")[0]] for name in names if name.split(" ")[0] in lines), "")


def _configure(backend: Library, builder: Any, network: Any, options: "BuildOptions") -> Any:
    api, config = backend.api, builder.create_builder_config()
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED  # the names of kernels, which `described` counts
    for profile in _profiles(builder, network):
        config.add_optimization_profile(profile)
    flags = {
        "WEIGHT_STREAMING": options.streaming,
        "REFIT": options.refit,
        "VERSION_COMPATIBLE": options.version_compatible,
    }
    for flag, wanted in flags.items():
        if wanted:
            config.set_flag(getattr(api.BuilderFlag, flag))
    if options.hardware_compatible:
        config.hardware_compatibility_level = api.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if options.targets:
        capabilities = [capability(backend, target) for target in options.targets]
        config.num_compute_capabilities = len(capabilities)
        for i, found in enumerate(capabilities):
            config.set_compute_capability(found, i)
    return config


def capability(backend: Library, target: str) -> Any:
    """TensorRT's own name for a compute capability such as "sm_89".

    Raises:
        BackendError: a library that builds for its own GPU only, or not for this one.
    """
    names = getattr(backend.api, "ComputeCapability", None)
    if names is None:
        raise BackendError(
            f"{backend.name} builds for the GPU of this machine only; leave out --target, or use --backend "
            "tensorrt-rtx."
        )
    known = names.__members__
    if target.replace("sm_", "SM") not in known:
        able = ", ".join(name.replace("SM", "sm_") for name in known if name.startswith("SM"))
        raise BackendError(f"{backend.name} does not build for {target}; it builds for {able}.")
    return known[target.replace("sm_", "SM")]


def _profiles(builder: Any, network: Any) -> Iterator[Any]:
    """One profile per entry of PROFILES that says something of this network; none where no size is free."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    free = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    symbols = {tensor.get_dimension_name(i) for tensor in free for i, size in enumerate(tensor.shape) if size == -1}
    everything = {name: size for entry in reversed(list(PROFILES.values())) for name, size in entry.items()}
    for sizes in PROFILES.values() if free else ():
        if not symbols & set(sizes):
            continue
        profile = builder.create_optimization_profile()
        for tensor in free:
            ranges = [
                (everything | dict(sizes))[tensor.get_dimension_name(i)] if size == -1 else (size,) * 3
                for i, size in enumerate(tensor.shape)
            ]
            profile.set_shape(tensor.name, *([entry[which] for entry in ranges] for which in range(3)))
        yield profile


def _cache(config: Any, file: Path | None) -> Any:
    if file is None:
        return None
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache
