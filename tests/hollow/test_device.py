"""The hollow device itself: what it counts, what it refuses, and what it cannot do is refused by name."""

import os
from pathlib import Path

import pytest
import torch
from hollow import build
from hollow.calls import Flags, Kind

MIB = 2**20


def test_every_call_of_pytorch_is_answered(loaded):
    """None reaches the real libraries below."""
    library = Path(os.environ["LD_PRELOAD"])
    assert build.wanted(build.torch_folder()) <= set(build._symbols(library, defined=True))


def test_memory_is_counted_per_device(hollow):
    before = [hollow.used(index) for index in (0, 1)]
    tensor = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda:1")
    assert [hollow.used(index) for index in (0, 1)] == [before[0], before[1] + 64 * MIB]
    assert tensor.get_device() == 1
    free, total = torch.cuda.mem_get_info(1)
    assert total - free == hollow.used(1) + 768 * MIB
    del tensor
    torch.cuda.empty_cache()
    assert hollow.used(1) == before[1]


def test_it_runs_out_of_memory_where_a_gpu_would(hollow):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.empty(total - 800 * MIB - hollow.used(), dtype=torch.uint8, device="cuda")
    torch.cuda.empty_cache()
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.empty(total - 700 * MIB, dtype=torch.uint8, device="cuda")


def test_what_the_host_wrote_reads_back_until_a_kernel_runs(hollow):
    numbers = torch.arange(100)
    on_device = numbers.to("cuda")
    assert torch.equal(on_device.cpu(), numbers)
    assert (on_device + 1).to(torch.uint8).cpu().unique().tolist() == [1]
    assert on_device.to(torch.uint8).cpu().unique().tolist() == [1]
    hollow.set_fill(0x40)
    assert (on_device > 3).all().item()
    assert 2.9 < torch.zeros(3, device="cuda").exp().sum().item() < 3.1


def test_calls_are_recorded_in_their_order(hollow):
    stream, host = torch.cuda.Stream(), torch.empty(4 * MIB, dtype=torch.uint8)
    target = torch.empty(4 * MIB, dtype=torch.uint8, device="cuda")
    pinned = torch.empty(4 * MIB, dtype=torch.uint8).pin_memory()
    event = torch.cuda.Event()
    with hollow.recorded() as record:
        target.add_(1)
        event.record()
        stream.wait_event(event)
        with torch.cuda.stream(stream):
            target.copy_(pinned, non_blocking=True)
        target.copy_(host)
        stream.synchronize()
    kinds = [call.kind for call in record.calls if call.kind is not Kind.EVENT_QUERY]
    assert kinds[:3] == [Kind.KERNEL, Kind.EVENT_RECORD, Kind.EVENT_WAIT]
    assert record.calls[1].event == record.calls[2].event
    asynchronous, blocking = record.of(Kind.TO_DEVICE)
    assert asynchronous.stream == record.calls[2].stream != blocking.stream == 0
    assert not asynchronous.waits
    assert blocking.waits
    assert blocking.flags & Flags.PAGEABLE
    assert record.calls[-1].kind is Kind.STREAM_SYNC
    assert asynchronous.bytes == blocking.bytes == 4 * MIB


@pytest.mark.faulty
def test_a_missing_device_guard_is_found(hollow):
    """Triton launches on the current device; a stream of another device is refused there."""
    import triton
    import triton.language as tl

    @triton.jit
    def zero(x, BLOCK: tl.constexpr):
        tl.store(x + tl.arange(0, BLOCK), 0.0)

    x, foreign = torch.empty(128, device="cuda:1"), torch.cuda.Stream("cuda:1")
    with torch.cuda.device(1):
        zero[(1,)](x, BLOCK=128)
    assert hollow.count(Kind.FAULT) == 0
    torch.cuda.set_device(0)
    kernel = zero.warmup(x, BLOCK=128, grid=(1,))
    with pytest.raises(RuntimeError, match="invalid resource handle"):
        kernel[(1, 1, 1)](x, 128, stream=foreign.cuda_stream)
    assert hollow.count(Kind.FAULT) == 1


@pytest.mark.faulty
def test_what_it_does_not_have_is_refused_by_name(hollow):
    with hollow.recorded() as record, pytest.raises(RuntimeError):
        torch.linalg.eigh(torch.eye(600, device="cuda"))
    assert any(name.startswith("cusolver") and name.endswith("is not implemented") for name in record.faults)


def test_pinning_is_refused_on_request(hollow):
    memory = torch.empty(MIB, dtype=torch.uint8)
    hollow.refuse_pinning(801)
    assert int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), MIB, 0)) == 801
    with pytest.raises(RuntimeError, match="not supported"):
        torch.zeros(1, device="cuda")  # the error stays until somebody asks for it, as on a GPU
    torch.zeros(1, device="cuda")


def test_a_graph_is_captured_and_launched(hollow):
    x = torch.zeros(64, 64, device="cuda")
    torch.mm(x, x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.mm(x, x).add_(1)
    with hollow.recorded() as record:
        graph.replay()
    (launched,) = record.of(Kind.GRAPH)
    assert launched.bytes >= 2  # how many launches it holds
    assert record.of(Kind.KERNEL, Kind.LIBRARY) == []
    del y


@pytest.mark.faulty
def test_waiting_is_refused_in_a_capture(hollow):
    x, graph = torch.zeros(64, device="cuda"), torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="not permitted"), torch.cuda.graph(graph):  # noqa: PT012
        x.add_(1)
        torch.cuda.current_stream().synchronize()
