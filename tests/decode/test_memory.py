"""What decode holds: by a counter of live tensor bytes on the device, the host's buffers apart."""

import weakref
from typing import ClassVar

import pytest
import torch
from support.autoencoders import decoding, random_latents
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from consisid.engine.configs import VaeConfig
from consisid.engine.decode.chunks import Host
from consisid.engine.decode.frames import frames_in_order
from consisid.engine.networks.vae_decoder import FirstChunk, NextChunk
from consisid.engine.variants import PREVIEW
from consisid.engine.video import to_uint8

pytestmark = pytest.mark.slow

LIMIT = 2**31
SMALL = VaeConfig((4, 4, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2)  # counting is slow


class Live(TorchDispatchMode):
    """Counts the bytes of storages that operators made and that are still alive, and the largest tensor."""

    host: ClassVar[set[int]] = set()

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._seen and key not in self.host:
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
            tensor = torch.empty(shape, dtype=dtype)
        storage = tensor.untyped_storage()
        Live.host.add(storage._cdata)
        weakref.finalize(storage, Live.host.discard, storage._cdata)
        return tensor

    monkeypatch.setattr(Host, "empty", empty)


def peak(mode, size, tile) -> int:
    networks, latents = decoding(SMALL), random_latents(SMALL, *size)
    live = Live()
    with live:
        for _ in frames_in_order(networks, latents, to_uint8, mode, tile):
            pass
    return live.peak


@pytest.mark.parametrize("mode", ["tiled", "exact"])
def test_the_peak_does_not_depend_on_the_frame(mode, host_apart):
    """Twice the area, the same peak; the whole frame at once takes twice as much, so the counter counts.

    The smaller frame has a tile with neighbours on all sides.
    """
    small, large = (5, 12, 12), (5, 12, 24)
    peaks = [peak(mode, size, (4, 4)) for size in (small, large)]
    inputs = [random_latents(SMALL, *size).nbytes for size in (small, large)]
    # Latents stay on the device: those of a chunk twice, while the next one takes its place.
    assert peaks[1] <= 1.01 * peaks[0] + 2 * (inputs[1] - inputs[0]), (peaks, inputs)
    whole = [peak("whole", size, None) for size in (small, large)]
    assert whole[1] > 1.8 * whole[0]
    assert peaks[1] < 0.5 * whole[1]


@pytest.mark.parametrize("mode", ["whole", "tiled", "exact", "tiled-reference"])
def test_the_peak_does_not_grow_with_the_frames(mode):
    """9 frames against 49: with what waits on the host, and what of the frames is not yet handed out."""
    peaks = [peak(mode, (frames, 4, 6), (4, 4)) for frames in (3, 13)]
    networks = decoding(SMALL)
    # From the second chunk on there are caches, which the first and only chunk of 9 frames does not keep.
    caches = sum(c.nbytes for c in networks.many("decode_first", random_latents(SMALL, 3, 4, 6).transpose(1, 2))[1:])
    assert peaks[1] <= peaks[0] + 4 * caches, (peaks, caches)
    longer = peak(mode, (19, 4, 6), (4, 4))
    assert longer <= 1.02 * peaks[1]  # and from then on nothing grows


def test_no_tensor_of_the_preview_has_more_than_2_31_elements():
    """On the meta device, at 49 frames of 480x720: the largest is the input of the first convolution at full size."""
    config, live = PREVIEW.vae, Live()
    with torch.device("meta"), torch.no_grad(), live:
        first, later = FirstChunk(config), NextChunk(config)
        frames, *caches = first(torch.empty(1, 16, 3, 60, 90))
        assert frames.shape == (1, 3, 9, 480, 720)
        frames, *caches = later(torch.empty(1, 16, 2, 60, 90), *caches)
        assert frames.shape == (1, 3, 8, 480, 720)
    assert len(caches) == 38
    assert live.largest == 256 * 11 * 480 * 720 < LIMIT


def test_larger_convolutions_go_in_pieces(monkeypatch):
    """Where a map would have more, no convolution is called with it; the result is the same."""
    from consisid.engine.networks import causal_conv as causal

    networks, latents = decoding(SMALL), random_latents(SMALL, 3, 5, 6)
    expected = networks.many("decode_first", latents.transpose(1, 2))
    sizes = []
    monkeypatch.setattr(causal, "LARGEST", 4 * 8 * 20 * 24)  # four frames of the largest map
    conv3d = causal.conv3d

    def measured(x, *rest):
        y = conv3d(x, *rest)
        sizes.append(max(x.numel(), y.numel()))
        return y

    monkeypatch.setattr(causal, "conv3d", measured)
    result = networks.many("decode_first", latents.transpose(1, 2))
    assert max(sizes) <= causal.LARGEST
    for ours, theirs in zip(result, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_larger_frame_needs_no_more_device_memory_at_full_size():
    """The preview's decoder on the meta device: one tile of 30x45 latent pixels against the whole of 60x90."""
    config = PREVIEW.vae
    peaks = []
    for height, width in ((30, 45), (60, 90)):
        live = Live()
        with torch.device("meta"), torch.no_grad():
            first = FirstChunk(config).bfloat16()
            with live:
                first(torch.empty(1, 16, 3, height, width, dtype=torch.bfloat16))
        peaks.append(live.peak / 2**30)
    print("GiB", peaks)
    assert 3.5 < peaks[1] / peaks[0] < 4.2
