"""How a loaded engine is called, by a library that computes on the addresses that it is told, in this machine's memory.
That TensorRT does as it does is in test_gpu.py."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from consisid.engine.backends.tensorrt import plugins
from consisid.engine.backends.tensorrt.backend import TensorRT
from consisid.engine.backends.tensorrt.plugins import ATTRIBUTES
from consisid.engine.backends.tensorrt.run import LoadedEngine
from consisid.engine.errors import BackendError

STREAM = 77
CPU = torch.device("cpu")
KINDS = ("FLOAT", "HALF", "BF16", "INT64", "INT32", "BOOL", "UINT8")


def memory(address, shape):
    """What a library finds at an address: float32, without strides."""
    count = int(torch.Size(shape).numel())
    return torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32).view(shape)


class Engine:
    """twice = 2 * x + n and, if `several`, less = x - n, of x [B, 3] for B = 2 or 1 or, if not `batched`, [2, 3], and
    n [3]. Outputs stand among the inputs, as the order is the library's own."""

    def __init__(self, batched=True, several=True):
        self.rows = -1 if batched else 2
        self.names = ["twice", "x", *(["less"] if several else []), "n"]
        self.num_io_tensors = len(self.names)
        self.profiles = [2, 1] if batched else [2]
        self.num_optimization_profiles = len(self.profiles)
        self.refittable, self.memory_left, self.works = False, True, True
        self.streamable_weights_size, self.weight_streaming_budget_v2 = 1000, None
        self.contexts, self.ran = [], []

    def get_tensor_name(self, i):
        return self.names[i]

    def get_tensor_mode(self, name):
        return "in" if name in ("x", "n") else "out"

    def get_tensor_shape(self, name):
        return (3,) if name == "n" else (self.rows, 3)

    def get_tensor_dtype(self, name):
        return "FLOAT"

    def get_tensor_profile_shape(self, name, profile):
        return [(3,) if name == "n" else (self.profiles[profile], 3)] * 3

    def get_device_memory_size_for_profile_v2(self, profile):
        return (64, 0)[profile]

    def create_execution_context(self, strategy):
        assert strategy == "by the caller"
        if not self.memory_left:
            return None
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.profile, self.scratch = engine, {}, {}, None, None

    def set_optimization_profile_async(self, profile, stream):
        assert stream == STREAM
        self.profile = profile

    def set_input_shape(self, name, shape):
        (low, _, high) = self.engine.get_tensor_profile_shape(name, self.profile)
        assert all(least <= size <= most for size, least, most in zip(shape, low, high, strict=True))
        self.shapes[name] = shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def get_tensor_shape(self, name):
        return self.shapes["x"]

    def set_device_memory(self, address, size):
        assert address
        self.scratch = size

    def execute_async_v3(self, stream):
        assert stream == STREAM
        assert self.addresses.keys() == set(self.engine.names)
        found = {name: memory(self.addresses[name], shape) for name, shape in self.shapes.items()}
        results = {"twice": 2 * found["x"] + found["n"], "less": found["x"] - found["n"]}
        for name in set(self.engine.names) & results.keys():
            memory(self.addresses[name], self.shapes["x"]).copy_(results[name])
        self.engine.ran.append((self.profile, self.scratch))
        return self.engine.works


class Library(TensorRT):
    """Whose files are all the engine that is given, or broken."""

    def __init__(self, engine):
        super().__init__("tensorrt", "nowhere", "tensorrt")
        self.made, self.reads = engine, 0
        self.log = SimpleNamespace(errors=[], clear=lambda: None)
        self.api = SimpleNamespace(
            __version__="11.1", Runtime=lambda log: self, TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
            DataType=SimpleNamespace(**{kind: kind for kind in KINDS}),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="by the caller"),
            Refitter=lambda engine, log: self, Weights=lambda kind, address, count: None,
        )  # fmt: skip

    def deserialize_cuda_engine(self, plan):
        self.reads += 1
        return self.made

    def set_named_weights(self, name, weights):
        return True

    def refit_cuda_engine_async(self, stream):
        return False


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """loaded(engine) -> a LoadedEngine of a file that holds it."""
    stream = SimpleNamespace(cuda_stream=STREAM, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    (tmp_path / "x.engine").write_bytes(b"plan")
    return lambda engine: LoadedEngine(Library(engine), tmp_path / "x.engine", CPU)


def given(batch):
    return [torch.randn(batch, 3), torch.randn(3)]


@pytest.mark.parametrize(
    ("batch", "ran"), [(1, [(1, 0)]), (2, [(0, 64)]), (4, [(0, 64)] * 2), (5, [(0, 64), (0, 64), (1, 0)])]
)
def test_samples_go_through_the_profiles_that_take_them(loaded, batch, ran):
    """With the scratch memory that the profile needs, and more of them than there is a profile for in pieces."""
    engine, (x, n) = Engine(), given(batch)
    run = loaded(engine)
    for _ in range(2):
        twice, less = run([x, n], ())
        assert torch.equal(twice, 2 * x + n)
        assert torch.equal(less, x - n)
    assert engine.ran == 2 * ran
    assert len(engine.contexts) == len({profile for profile, _ in ran})  # one for each, kept
    assert run.backend.reads == 1


@pytest.mark.parametrize("batch", [2, 5])
def test_one_output_is_a_tensor(loaded, batch):
    x, n = given(batch)
    assert torch.equal(loaded(Engine(several=False))([x, n], ()), 2 * x + n)


def test_inputs_may_have_strides(loaded):
    """The library reads addresses."""
    wide, n = torch.randn(6, 5), torch.randn(6)[::2]
    for x in (wide[:, 1:4], wide[1:3, :3], wide[0:2, ::2]):
        assert torch.equal(loaded(Engine(several=False))([x, n], ()), 2 * x + n)


def test_an_engine_of_one_size(loaded):
    x, n = given(2)
    twice, _ = loaded(Engine(batched=False))([x, n], ())
    assert torch.equal(twice, 2 * x + n)
    with pytest.raises(BackendError, match=r"x.engine has no profile for x \[3, 3\], n \[3\]; build the engine for"):
        loaded(Engine(batched=False))([torch.randn(3, 3), n], ())


def test_weights_stay_within_the_budget(loaded):
    """An engine is read again when its budget becomes another, and only then."""
    engine = Engine()
    run = loaded(engine)
    assert run.streamable == 1000
    assert engine.weight_streaming_budget_v2 is None
    for budget, reads in ((300, 2), (300, 2), (5000, 3), (None, 4)):
        run.limit(budget)
        run(given(2), ())
        assert run.backend.reads == reads
        assert budget is None or engine.weight_streaming_budget_v2 == min(budget, 1000)
    contexts = len(engine.contexts)
    run.close()
    run(given(2), ())
    assert len(engine.contexts) == contexts + 1  # what a closed engine had is gone


def test_what_the_library_refuses(loaded):
    def refused(change, message, refit=False, said=()):
        engine = Engine()
        engine.__dict__.update(change)
        run = loaded(engine)
        run.backend.log.errors.extend(said)
        if refit:
            run.refit({"a": torch.zeros(2)})
        with pytest.raises(BackendError, match=message):
            run(given(2), ())

    refused({"memory_left": False}, r"x.engine found no memory on cpu to run in; give a smaller memory budget")
    refused({"works": False}, r"x.engine could not run: no reason given")
    refused({"works": False}, r"x.engine could not run: the last\.", said=["the first", "the last"])
    refused({}, r"LoRA is not available on x.engine, .*with --refit, or use --backend inductor", refit=True)
    refused({"refittable": True}, r"could not take the weights of a LoRA \(why\); unload it", refit=True, said=["why"])
    with pytest.raises(BackendError, match=r"x.engine cannot be loaded by nowhere 11.1 \(no reason given\); rebuild"):
        loaded(None)(given(2), ())


def test_a_folder_is_opened_with_plugins_known(tmp_path, monkeypatch):
    """An engine may hold some. Nothing is read before the first call."""
    library, known = Library(Engine()), []
    monkeypatch.setattr("consisid.engine.backends.tensorrt.backend.register", lambda *given: known.append(given))
    with pytest.raises(BackendError, match="run on an NVIDIA GPU"):
        library.load(None, tmp_path / "x.engine", CPU, [])
    assert not known
    monkeypatch.setattr(library, "check", lambda device: None)
    for _ in range(2):
        engine = library.load(None, tmp_path / "x.engine", CPU, [])
    assert known == [(library, tuple(ATTRIBUTES))]
    assert (engine.file, engine.device, library.reads) == (tmp_path / "x.engine", CPU, 0)


class Field(SimpleNamespace):
    def __init__(self, name, data, kind):
        super().__init__(name=name, data=data, kind=kind)


@pytest.fixture
def api():
    """What plugins are made of, and a registry."""
    kinds = SimpleNamespace(UNKNOWN="unknown", CHAR="char")
    bases = ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One")
    made = SimpleNamespace(
        PluginField=Field, PluginFieldType=kinds, PluginFieldCollection=list,
        DataType=SimpleNamespace(**{kind: kind for kind in KINDS}), **{name: type(name, (), {}) for name in bases},
    )  # fmt: skip
    creators = {}
    registry = SimpleNamespace(
        get_creator=lambda name, version, space: creators.get(name),
        register_creator=lambda creator, space: creators.setdefault(creator.name, creator),
        deregister_creator=lambda creator: creators.pop(creator.name),
    )
    made.get_plugin_registry = lambda: registry
    made.creators = creators
    return made


def test_the_newest_plugin_of_a_name_is_known(api):
    backend = SimpleNamespace(api=api)
    first = plugins.register(backend, ("gated_residual", "joint_attention"), 89)
    assert api.creators == dict(zip(("gated_residual", "joint_attention"), first, strict=True))
    (second,) = plugins.register(backend, ("joint_attention",), 120)
    assert api.creators == {"gated_residual": first[0], "joint_attention": second}
    with pytest.raises(BackendError, match=r"no plugin 'softmax'; the plugins are joint_attention, modulated_norm"):
        plugins.register(backend, ("joint_attention", "softmax"))


def test_a_plugin_launches_the_code_that_its_engine_holds(api, monkeypatch):
    """Compiled once, for the shapes of the build; a copy for each context launches it without compiling."""
    compiled, launched = [], []

    def compile_standalone(*asked):
        compiled.append(asked)
        return plugins.Code("kernel", ".ptx", (4, 5, 6), 128, 0)

    monkeypatch.setattr(plugins, "compile_standalone", compile_standalone)
    monkeypatch.setattr(plugins.Kernel, "launch", lambda kernel, *given: launched.append((kernel.code, *given)))
    (creator,) = plugins.register(SimpleNamespace(api=api), ("gated_residual",), 89)
    plugin = creator.create_plugin("p", [Field("text_length", [3], "int32")], None)
    assert plugin.get_fields_to_serialize() == []
    inputs = [SimpleNamespace(dims=shape, type="BF16") for shape in ((2, 8, 16), (2, 8, 16), (2, 3, 16))]
    plugin.on_shape_change(inputs, [])
    plugin.on_shape_change(inputs, [])
    assert compiled == [("gated_residual", [(2, 8, 16), (2, 8, 16), (2, 3, 16)], torch.bfloat16, [3], 89)]
    (stored,) = plugin.get_fields_to_serialize()
    loaded = creator.create_plugin("p", [stored], None).attach_to_context(None)
    loaded.on_shape_change(inputs, [])
    loaded.enqueue(inputs, inputs[:1], [11, 12, 13], [14], 0, STREAM)
    assert launched == [(plugins.Code("kernel", ".ptx", (4, 5, 6), 128, 0), [11, 12, 13, 14], STREAM)]
    assert len(compiled) == 1
