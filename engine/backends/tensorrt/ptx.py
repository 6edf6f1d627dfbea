"""Launching PTX through the CUDA driver: what TensorRT asks a plugin to do, without Triton."""

import ctypes
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from consisid.kernels.aot.ptx import Code

from ...errors import BackendError

SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
FREELY = 48 * 1024  # bytes of shared memory that a kernel has without asking


class Kernel:
    """A kernel in the current CUDA context, loaded at its first launch."""

    def __init__(self, code: Code):
        self.code = code

    @cached_property
    def _driver(self) -> Any:
        try:
            return ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise BackendError(f"The CUDA driver cannot be loaded ({error}); install the NVIDIA driver.") from None

    @cached_property
    def _function(self) -> ctypes.c_void_p:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(self._driver.cuModuleLoadData(ctypes.byref(module), self.code.ptx.encode()))
        self._check(self._driver.cuModuleGetFunction(ctypes.byref(function), module, self.code.entry.encode()))
        if self.code.shared > FREELY:
            self._check(self._driver.cuFuncSetAttribute(function, SHARED, self.code.shared))
        return function

    def launch(self, addresses: Sequence[int], stream: int) -> None:
        """Queue the kernel on a stream.

        Args:
            addresses: of the tensors on the device, inputs, then outputs, contiguous.
            stream: a CUstream.

        Raises:
            BackendError: the driver refused, with its reason.
        """
        values = [ctypes.c_uint64(address) for address in addresses]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self._check(
            self._driver.cuLaunchKernel(
                self._function, *self.code.grid, self.code.threads, 1, 1, self.code.shared,
                ctypes.c_void_p(stream), pointers, None,
            )
        )  # fmt: skip

    def _check(self, result: int) -> None:
        if result:
            name = ctypes.c_char_p()
            self._driver.cuGetErrorName(result, ctypes.byref(name))
            reason = (name.value or b"an unknown error").decode()
            raise BackendError(f"The CUDA driver refused {self.code.entry}: {reason}; rebuild the engine on this GPU.")
