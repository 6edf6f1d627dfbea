"""Gluon on a CPU, as far as joint_attention_gluon.py needs it: Triton's interpreter does not run Gluon.

Partitions are threads, barriers are conditions, and what is asynchronous is as late as it may be: a copy by the copy
engine leaves its place invalid until a barrier counts its bytes, and a matrix product reads its operands when somebody
waits for it, so that a slot which is filled again too early gives wrong numbers. All is computed in float32, but for
what is converted. A thread that waits in vain for SECONDS fails the program: a deadlock.
"""

import contextlib
import importlib.util
import random
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import torch

SECONDS = 20.0
DELAYS = (0.0, 1e-4, 3e-3)  # seconds until a copy arrives
PLACE = threading.local()  # of a thread: its program


class Deadlock(Exception):
    pass


class Program:
    def __init__(self, place):
        self.place, self.changed, self.failed = place, threading.Condition(), []

    def fail(self, error):
        with self.changed:
            self.failed.append(error)
            self.changed.notify_all()

    def wait_until(self, true):
        with self.changed:
            if not self.changed.wait_for(lambda: true() or self.failed, SECONDS) or self.failed:
                raise Deadlock


class Barrier:
    """Phases of a number of arrivals and of bytes that are expected."""

    def init(self, count):
        self.count = self.left = count
        self.bytes = self.phase = 0

    def settle(self, arrivals=0, expected=0):
        program = PLACE.program
        with program.changed:
            self.left -= arrivals
            self.bytes += expected
            assert self.left >= 0, "more arrivals in a phase than the barrier counts"
            if self.left == 0 and self.bytes == 0:
                self.phase ^= 1
                self.left = self.count
            program.changed.notify_all()


class Shared:
    """Shared memory: a tensor, or barriers."""

    def __init__(self, data, dtype=None):
        self.data, self.dtype = data, dtype

    def index(self, i):
        return Shared(self.data[int(i)], self.dtype) if torch.is_tensor(self.data) else self.data[int(i)]

    def reshape(self, shape):
        return Shared(self.data.view(shape), self.dtype)

    def permute(self, order):
        return Shared(self.data.permute(order), self.dtype)


class Descriptor:
    """Of a tensor [B, S, H, D], in blocks; what lies outside is zero."""

    def __init__(self, tensor, block):
        self.tensor, self.block, self.dtype, self.layout = tensor, block, tensor.dtype, None
        size = torch.Size(block).numel() * tensor.element_size()
        self.block_type = SimpleNamespace(nbytes=size)

    def read(self, place):
        found = torch.zeros(self.block)
        part = self.tensor[tuple(slice(at, at + size) for at, size in zip(place, self.block, strict=True))]
        found[tuple(slice(0, size) for size in part.shape)] = part.float()
        return found


class Token:
    """A product that is under way; the last to be waited for reads its operands last."""

    def __init__(self, compute):
        self.compute = compute


class Pointer:
    def __init__(self, tensor, offset=0):
        self.tensor, self.offset = tensor, offset

    def __add__(self, offset):
        return Pointer(self.tensor, self.offset + offset)


class Number(int):
    """A program's number, which has a type in Triton."""

    def to(self, dtype):
        return int(self)


def copy(descriptor, place, barrier, result):
    """Later, and not in the order of the calls."""
    result.data.fill_(float("nan"))
    program = PLACE.program

    def arrive():
        PLACE.program = program
        time.sleep(random.choice(DELAYS))
        try:
            result.data.copy_(descriptor.read([int(at) for at in place]))
            barrier.settle(expected=-descriptor.block_type.nbytes)
        except Exception as error:
            program.fail(error)

    threading.Thread(target=arrive).start()


def value(x):
    return x.data.float() if isinstance(x, Shared) else x.float()


def product(left, right, total, use_acc=True, is_async=False):
    def compute():
        return value(left) @ value(right) + (total if use_acc else 0)

    pending = PLACE.__dict__.setdefault("pending", [])
    if is_async:
        token = Token(compute)
        pending.append(token)
        return token
    assert not pending, "a product that is waited for behind others that are not"
    return compute()


def wait_for_products(outstanding, deps):
    """The oldest are over first; what is not among `deps` is computed where it is waited for."""
    pending = PLACE.pending
    while len(pending) > outstanding:
        time.sleep(random.random() * 5e-4)  # for others to spoil the operands in, where they may
        token = pending.pop(0)
        token.result = token.compute()
    return deps[0].result


def specialize(functions, warps, registers):
    program, threads = PLACE.program, []
    assert len(functions) == len(warps) + 1 == len(registers) + 1

    def run(function, arguments):
        PLACE.program, PLACE.pending = program, []
        try:
            function(*arguments)
            assert not PLACE.pending, "a product that nobody waited for"
        except Exception as error:
            program.fail(error)

    for function, arguments in functions:
        threads.append(threading.Thread(target=run, args=(function, arguments)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    if program.failed:
        raise program.failed[0]


def store(pointer, x, mask):
    offset = torch.broadcast_to(pointer.offset, x.shape)
    mask = torch.broadcast_to(mask, x.shape)
    pointer.tensor.view(-1)[offset[mask]] = x[mask].to(pointer.tensor.dtype)


def allocate(dtype, shape, layout):
    if dtype == "barrier":
        barriers = [Barrier() for _ in range(shape[0])]
        return barriers[0] if len(shape) == 1 else Shared(barriers)
    return Shared(torch.full(shape, float("nan")), dtype)


def wait(barrier, phase):
    PLACE.program.wait_until(lambda: barrier.phase != phase)


LANGUAGE = SimpleNamespace(
    constexpr=None, float32=torch.float32, int64="barrier", bfloat16=torch.bfloat16, float16=torch.float16,
    NVMMADistributedLayout=lambda *a, **k: None, DotOperandLayout=lambda *a: None, SliceLayout=lambda *a: None,
    full=lambda shape, x, dtype, layout: torch.full(shape, x), arange=lambda a, b, layout: torch.arange(a, b),
    where=lambda condition, x, y: torch.where(condition, x, torch.tensor(y)), maximum=torch.maximum, exp2=torch.exp2,
    max=lambda x, axis: x.max(axis).values, sum=lambda x, axis: x.sum(axis), convert_layout=lambda x, layout: x,
    program_id=lambda axis: Number(PLACE.program.place[axis]), static_range=range, store=store,
    allocate_shared_memory=allocate, warp_specialize=specialize,
)  # fmt: skip
MBARRIER = SimpleNamespace(
    MBarrierLayout=lambda: None, init=lambda barrier, count: barrier.init(count), wait=wait,
    arrive=lambda barrier: barrier.settle(arrivals=1),
    expect=lambda barrier, size: barrier.settle(arrivals=1, expected=size),
)  # fmt: skip
HOPPER = {
    "mbarrier": MBARRIER, "tma": SimpleNamespace(async_copy_global_to_shared=copy), "warpgroup_mma": product,
    "warpgroup_mma_wait": wait_for_products, "fence_async_shared": lambda: None,
}  # fmt: skip


@contextlib.contextmanager
def replaced(modules):
    """These modules in the place of Triton's."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def load(path, name):
    """The kernels of a file, as functions that run here."""
    root = "triton.experimental.gluon"
    gluon, language, nvidia, hopper = (
        ModuleType(root + each) for each in ("", ".language", ".language.nvidia", ".language.nvidia.hopper")
    )
    gluon.jit = gluon.constexpr_function = lambda function: function
    vars(language).update(vars(LANGUAGE))
    gluon.language = language
    vars(hopper).update(HOPPER)
    experimental = ModuleType("triton.experimental")
    experimental.gluon = gluon
    modules = {each.__name__: each for each in (experimental, gluon, language, nvidia, hopper)}
    with replaced(modules):
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def run(module, q, k, v, factor, block_n, slots, rows):
    """The kernel's grid, program after program; attention of [B, S, H, D]."""
    batch, queries, heads, dim = q.shape
    out = torch.full(q.shape, float("nan"), dtype=q.dtype)
    descriptors = [Descriptor(x, [1, size, 1, dim]) for x, size in ((q, rows), (k, block_n), (v, block_n))]
    for place in ((x, y, z) for z in range(batch) for y in range(heads) for x in range(-(-queries // (2 * rows)))):
        PLACE.program, PLACE.pending = Program(place), []
        module.joint_attention_gluon_kernel(
            *descriptors, Pointer(out), queries, k.shape[1], heads,
            FACTOR=factor, D=dim, BLOCK_N=block_n, SLOTS=slots, ROWS=rows, COMPUTING=240, LOADING=24,
        )  # fmt: skip
    return out
