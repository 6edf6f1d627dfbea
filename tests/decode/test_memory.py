"""What decode holds: by a counter of live tensor bytes on the device, the host's buffers apart."""

import weakref
from dataclasses import replace

import pytest
import torch
from decode.autoencoders import SMALL, decoding, random_latents
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from consisid.engine.chunks import Host
from consisid.engine.decode import frames_in_order, to_uint8
from consisid.engine.networks.vae import FirstChunk, NextChunk
from consisid.engine.variants import PREVIEW

LIMIT = 2**31


class Live(TorchDispatchMode):
    """Counts the bytes of storages that operators made and that are still alive, and the largest tensor."""

    def __init__(self, host=()):
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._seen = set()
        self.host = host

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._seen and not any(storage.data_ptr() == h for h in self.host):
                    self._seen.add(key)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, key, storage.nbytes())
        return result

    def _gone(self, key, size):
        self._seen.discard(key)
        self.now -= size


@pytest.fixture
def host_apart(monkeypatch):
    """The host's buffers are made where the counter does not see them, and tensors on their way count."""

    def empty(self, shape, dtype):
        with _disable_current_modes():
            return torch.empty(shape, dtype=dtype)

    monkeypatch.setattr(Host, "empty", empty)
