"""A loaded TensorRT engine: torch tensors are bound by address, everything is queued on torch's current stream."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BackendError
from .. import Outputs
from .library import Library


class LoadedEngine:
    """`engine(inputs, ())` -> outputs. The engine is read at the first call, and again after `close`.

    What a call needs beside inputs, outputs and weights is taken from PyTorch's allocator for its length, so that the
    shards of a network share it.

    Attributes:
        budget: bytes of its weights that may be on the device, None for all of them; set before the engine is read.
    """

    def __init__(self, backend: Library, file: Path, device: torch.device):
        self.backend, self.file, self.device = backend, file, device
        self.budget: int | None = None
        self._engine: Any = None
        self._contexts: dict[int, Any] = {}
        self._replaced: dict[str, Tensor] = {}  # weights by refit(), which the file does not have

    @property
    def engine(self) -> Any:
        """The deserialised engine.

        Raises:
            BackendError: another version made it, or for another GPU, or the file is damaged.
        """
        if self._engine is None:
            runtime = self.backend.api.Runtime(self.backend.log)
            self.backend.log.clear()
            plan = self.file.read_bytes()
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise invalid(self.backend, runtime, plan, self.file)
            if self._replaced:
                self._refit(engine)
            self._engine = engine
            if self.budget is not None:
                self._engine.weight_streaming_budget_v2 = min(self.budget, self._engine.streamable_weights_size)
        return self._engine

    @property
    def streamable(self) -> int:
        """Bytes of weights that may stay in host memory."""
        return int(self.engine.streamable_weights_size)

    def limit(self, budget: int | None) -> None:
        """From now on at most `budget` bytes of the weights are on the device."""
        if budget != self.budget:
            self.close()
            self.budget = budget

    def close(self) -> None:
        """Give all memory back."""
        self._contexts, self._engine = {}, None

    def __call__(self, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Outputs:
        most = self._batch(inputs)
        size = inputs[0].shape[0]
        if most is None or size <= most:
            return self._run([x.contiguous() for x in inputs])
        # More samples than a profile has: several calls, the last perhaps with fewer.
        parts = [
            self._run([x[i : i + most].contiguous() if self._batched(name) else x.contiguous()
                       for name, x in zip(self._names(True), inputs, strict=True)])
            for i in range(0, size, most)
        ]  # fmt: skip
        if isinstance(parts[0], Tensor):
            return torch.cat([part for part in parts if isinstance(part, Tensor)])
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _names(self, inputs: bool) -> list[str]:
        api, engine = self.backend.api, self.engine
        mode = api.TensorIOMode.INPUT if inputs else api.TensorIOMode.OUTPUT
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        return [name for name in names if engine.get_tensor_mode(name) == mode]

    def _batched(self, name: str) -> bool:
        return int(self.engine.get_tensor_shape(name)[0]) == -1

    def _batch(self, inputs: Sequence[Tensor]) -> int | None:
        """The largest first dimension that a profile has, None where it is fixed."""
        first = self._names(True)[0]
        if not self._batched(first):
            return None
        shapes = [self.engine.get_tensor_profile_shape(first, i) for i in range(self.engine.num_optimization_profiles)]
        return max(int(most[0]) for _, _, most in shapes)

    def _profile(self, inputs: Sequence[Tensor]) -> int:
        """The first profile that all inputs fit into."""
        engine, names = self.engine, self._names(True)
        for i in range(engine.num_optimization_profiles):
            ranges = [engine.get_tensor_profile_shape(name, i) for name in names]
            if all(_inside(x.shape, low, high) for x, (low, _, high) in zip(inputs, ranges, strict=True)):
                return i
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in zip(names, inputs, strict=True))
        raise BackendError(f"{self.file.name} has no profile for {shapes}; build the engine for this size.")

    def _context(self, profile: int, stream: int) -> Any:
        if profile not in self._contexts:
            strategy = self.backend.api.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self.engine.create_execution_context(strategy)
            if context is None:
                raise BackendError(
                    f"{self.file.name} found no memory on {self.device} to run in; give a smaller memory budget."
                )
            context.set_optimization_profile_async(profile, stream)
            self._contexts[profile] = context
        return self._contexts[profile]

    def _run(self, inputs: Sequence[Tensor]) -> Outputs:
        stream = torch.cuda.current_stream(self.device).cuda_stream
        profile = self._profile(inputs)
        context = self._context(profile, stream)
        for name, x in zip(self._names(True), inputs, strict=True):
            context.set_input_shape(name, tuple(x.shape))
            context.set_tensor_address(name, x.data_ptr())
        outputs = []
        for name in self._names(False):
            shape, dtype = (
                tuple(context.get_tensor_shape(name)),
                dtypes(self.backend.api)[self.engine.get_tensor_dtype(name)],
            )
            outputs.append(torch.empty(shape, dtype=dtype, device=self.device))
            context.set_tensor_address(name, outputs[-1].data_ptr())
        size = self.engine.get_device_memory_size_for_profile_v2(profile)
        scratch = torch.empty(max(1, size), dtype=torch.uint8, device=self.device)
        context.set_device_memory(scratch.data_ptr(), size)
        if not context.execute_async_v3(stream):
            raise BackendError(
                f"{self.file.name} could not run: {(self.backend.log.errors or ['no reason given'])[-1]}."
            )
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def refit(self, weights: Mapping[str, Tensor]) -> None:
        """Replace weights of the file, by the names that they have in the graph, whenever it is read from now on.

        Args:
            weights: all that are to be others than in the file; none for the engine as it was built.
        """
        self._replaced = {name: weight.cpu().contiguous() for name, weight in weights.items()}
        self.close()

    def _refit(self, engine: Any) -> None:
        """Put the replaced weights into an engine that was just read.

        Raises:
            BackendError: an engine that cannot be refitted, or that does not have a name.
        """
        if not engine.refittable:
            raise BackendError(
                f"A LoRA is not available on {self.file.name}, which was not built refittable; rebuild the folder on "
                "this GPU with --refit, or use --backend inductor."
            )
        refitter = self.backend.api.Refitter(engine, self.backend.log)
        for name, merged in self._replaced.items():
            kind = types(self.backend.api)[merged.dtype]
            weights = self.backend.api.Weights(kind, merged.data_ptr(), merged.numel())
            if not refitter.set_named_weights(name, weights):
                raise BackendError(
                    f"{self.file.name} has no weights {name} to be replaced, as where it only has what follows from "
                    "them; leave that module out of the LoRA, or use --backend inductor."
                )
        stream = torch.cuda.current_stream(self.device)
        if not refitter.refit_cuda_engine_async(stream.cuda_stream):
            reason = (self.backend.log.errors or ["no reason given"])[-1]
            raise BackendError(f"{self.file.name} could not take the weights of a LoRA ({reason}); unload it.")
        stream.synchronize()


def shares(budget: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """A budget in bytes divided over engines in proportion to their streamable weights, never more than those."""
    total = sum(sizes.values())
    return {name: min(size, budget * size // total) if total else 0 for name, size in sizes.items()}


def dtypes(api: Any) -> dict[Any, torch.dtype]:
    """torch's dtypes by TensorRT's."""
    return {kind: dtype for dtype, kind in types(api).items()}


def types(api: Any) -> dict[torch.dtype, Any]:
    """TensorRT's data types by torch's."""
    names = {
        torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16", torch.int64: "INT64",
        torch.int32: "INT32", torch.bool: "BOOL", torch.uint8: "UINT8",
    }  # fmt: skip
    return {dtype: getattr(api.DataType, name) for dtype, name in names.items()}


def _inside(shape: Sequence[int], low: Sequence[int], high: Sequence[int]) -> bool:
    return all(least <= size <= most for size, least, most in zip(shape, low, high, strict=True))


# What TensorRT for RTX says of an engine that it cannot load, and what helps.
CAUSES: Mapping[str, str] = {
    "VERSION_MISMATCH": "was built by another version of {package} than {version}; rebuild the folder",
    "UNSUPPORTED_CC": "was built for another GPU; rebuild the folder with --target sm_{capability}",
    "OLD_CUDA_DRIVER": "needs a newer NVIDIA driver; update it",
    "OLD_CUDA_RUNTIME": "needs a newer CUDA runtime; update {package}",
    "INSUFFICIENT_GPU_MEMORY": "does not fit into the memory of this GPU; give a memory budget",
    "MALFORMED_ENGINE": "is damaged; rebuild the folder",
    "CUDA_ERROR": "could not be loaded because CUDA does not work here; check the NVIDIA driver",
}


def invalid(backend: Library, runtime: Any, plan: bytes, file: Path) -> BackendError:
    """The error of an engine that could not be loaded: by TensorRT for RTX's diagnostics, or by its log."""
    found: Sequence[Any] = ()
    if hasattr(runtime, "get_engine_validity"):
        _, diagnostics = runtime.get_engine_validity(plan)
        members = backend.api.EngineInvalidityDiagnostics.__members__
        found = [name for name, value in members.items() if int(diagnostics) & int(value)]
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    known = {"package": backend.package, "version": backend.api.__version__, "capability": f"{major}{minor}"}
    causes = [CAUSES[name].format(**known) for name in found if name in CAUSES]
    if not causes:
        reason = (backend.log.errors or ["no reason given"])[-1]
        causes = [
            f"cannot be loaded by {backend.package} {backend.api.__version__} ({reason}); rebuild the folder here"
        ]
    return BackendError(f"The engine {file.name} {causes[0]}.")
