"""The Triton kernels inside a TensorRT engine: plugins that carry their PTX with them and launch it by the driver.

A plugin has the name of an operator of domain `consisid`, so the parser takes it instead of the function of that name.
When an engine is built, the shapes are known; the kernel is compiled for them, without a GPU, and becomes a field of
the plugin that is stored in the engine. Whoever loads the engine registers the plugins first (`register`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from consisid.kernels.aot.ptx import STANDALONE, Code, compile_standalone

from ...errors import BackendError
from .library import Library
from .ptx import Kernel
from .run import dtypes

VERSION = "1"
CODE = "code"  # the field that holds the kernel
# The attributes of each operator in ONNX, in the order in which it takes them after its tensors.
ATTRIBUTES = {
    "joint_attention": ("scale",),
    "modulated_norm": ("text_length", "eps"),
    "gated_residual": ("text_length",),
    "gated_modulated_norm": ("text_length", "eps"),
}


def register(backend: Library, names: Sequence[str], arch: int = 0) -> list[Any]:
    """Make plugins known to the library; the caller keeps what this returns for as long as they are wanted.

    Args:
        names: of ATTRIBUTES.
        arch: compute capability that kernels are compiled for, such as 89; not needed to run.
    """
    unknown = [name for name in names if name not in ATTRIBUTES]
    if unknown:
        raise BackendError(f"There is no plugin {unknown[0]!r}; the plugins are {', '.join(ATTRIBUTES)}.")
    registry, creators = backend.api.get_plugin_registry(), []
    for name in names:
        creator = creator_class(backend.api)(name, arch)
        known = registry.get_creator(name, VERSION, "")
        if known is not None:
            registry.deregister_creator(known)
        registry.register_creator(creator, "")
        creators.append(creator)
    return creators


def creator_class(api: Any) -> Any:
    """The class that makes plugins, over the base classes of a module."""
    plugin = plugin_class(api)

    class Creator(api.IPluginCreatorV3One):
        def __init__(self, name: str, arch: int):
            api.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace, self.arch = name, VERSION, "", arch
            self.field_names = api.PluginFieldCollection(
                [
                    api.PluginField(field, np.array([]), api.PluginFieldType.UNKNOWN)
                    for field in (*ATTRIBUTES[name], CODE)
                ]
            )

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            given = {field.name: np.asarray(field.data) for field in fields}
            return plugin(self.name, self.arch, given)

    return Creator


def plugin_class(api: Any) -> Any:
    """The plugin, over the base classes of a module. The methods are what TensorRT calls, in its words."""
    bases = (api.IPluginV3, api.IPluginV3OneCore, api.IPluginV3OneBuild, api.IPluginV3OneRuntime)

    class Plugin(*bases):  # type: ignore[misc]
        def __init__(self, name: str, arch: int, given: dict[str, Any]):
            for base in bases:
                base.__init__(self)
            self.plugin_name, self.plugin_version, self.plugin_namespace = name, VERSION, ""
            self.num_outputs, self.timing_cache_id = STANDALONE[name].outputs, ""
            self.arch, self.given = arch, given
            self.kernel = Kernel(Code.loads(given[CODE].tobytes())) if CODE in given else None

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def get_output_data_types(self, inputs: Any) -> Any:
            return [inputs[0]] * self.num_outputs

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> Any:
            return [api.DimsExprs(inputs[0]) for _ in range(self.num_outputs)]

        def supports_format_combination(self, position: int, tensors: Any, count: int) -> bool:
            described = tensors[position].desc
            return described.format == api.TensorFormat.LINEAR and described.type == tensors[0].desc.type

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            self._compile([tensor.desc for tensor in inputs])

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            if self.kernel is None:
                self._compile(inputs)

        def _compile(self, inputs: Any) -> None:

            shapes = [tuple(tensor.dims) for tensor in inputs]
            attributes = [self.given[name].reshape(-1)[0].item() for name in ATTRIBUTES[self.plugin_name]]
            dtype: torch.dtype = dtypes(api)[inputs[0].type]
            code = compile_standalone(self.plugin_name, shapes, dtype, attributes, self.arch)
            self.given = self.given | {CODE: np.frombuffer(code.dumps(), dtype=np.int8)}
            self.kernel = Kernel(code)

        def get_fields_to_serialize(self) -> Any:
            fields = [api.PluginField(CODE, self.given[CODE], api.PluginFieldType.CHAR)] if CODE in self.given else []
            return api.PluginFieldCollection(fields)

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            return 0

        def get_valid_tactics(self) -> Any:
            return []

        def set_tactic(self, tactic: int) -> None:
            """There is one."""

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def clone(self) -> Any:
            return Plugin(self.plugin_name, self.arch, dict(self.given))

        def enqueue(
            self, inputs_desc: Any, outputs_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int
        ) -> None:
            assert self.kernel is not None, "an engine holds the code of its plugins"
            self.kernel.launch([*inputs, *outputs], stream)

    return Plugin
