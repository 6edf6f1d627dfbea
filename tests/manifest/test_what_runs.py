"""What the manifest says is what runs: nothing beside it, nothing that was changed, nothing that this machine cannot
execute."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.files import replace
from support.people import random_identity

from consisid.engine import ConsisID
from consisid.engine.checkpoint.reading import Checkpoint
from consisid.engine.errors import EngineError, InputError
from consisid.engine.manifest import Manifest, digest
from consisid.engine.util.machine import executes, provenance
from consisid.engine.util.sources import SOURCES, kernels_hash, source_files
from consisid.engine.util.turns import turn_of
from consisid.engine.variants import TINY
from consisid.export import build

pytestmark = pytest.mark.slow

SHORT = {"seed": 1, "num_inference_steps": 1, "output_type": "latent"}
TRANSFORMER = "diffusion_pytorch_model.safetensors"


def latents(engine: ConsisID) -> torch.Tensor:
    return engine.generate(random_identity(TINY), "A man in a dark coat.", **SHORT).latents


@pytest.fixture(scope="module")
def built(shallow_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundled") / "engine"
    build(shallow_checkpoint, folder, backend="eager", bundle=True)
    return folder


@pytest.fixture
def bundled(built, tmp_path):
    """An engine with a checkpoint of its own, to be changed."""
    return shutil.copytree(built, tmp_path / "engine")


@pytest.mark.parametrize("verify", [False, True])
def test_files_beside_those_of_the_manifest_are_not_read(bundled, shallow, verify):
    """An index and other weights, a tokenizer of the other kind, other face models and a nested antelopev2."""
    checkpoint = bundled / "checkpoint"
    for part in ("transformer", "vae"):
        state = {name: tensor * 2 for name, tensor in load_file(checkpoint / part / TRANSFORMER).items()}
        save_file(state, checkpoint / part / "other.safetensors")
        index = {"weight_map": dict.fromkeys(state, "other.safetensors")}
        (checkpoint / part / f"{TRANSFORMER}.index.json").write_text(json.dumps(index))
    save_file({"x": torch.zeros(1)}, checkpoint / "text_encoder" / "model.safetensors.fp16.safetensors")
    (checkpoint / "tokenizer" / "tokenizer.json").write_text("{}")
    shutil.copytree(
        checkpoint / "face_encoder/models/antelopev2", checkpoint / "face_encoder/models/antelopev2/antelopev2"
    )
    engine = ConsisID.open(bundled, verify=verify)
    assert torch.equal(latents(engine), latents(shallow))
    assert engine.faces.files["arcface"].parent.parent.name == "models"


def test_a_file_that_took_the_place_of_a_missing_one_is_not_read(bundled):
    """The scheduler of the manifest is gone after the engine was opened; another lies where it is not named."""
    engine = ConsisID.open(bundled)
    (bundled / "checkpoint/tokenizer/spiece.model").rename(bundled / "checkpoint/tokenizer/tokenizer.json")
    with pytest.raises(Exception, match=r"tokenizer/spiece.model is missing"):
        latents(engine)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", ""])
@pytest.mark.parametrize("place", ["weights", "graphs"])
def test_a_manifest_names_no_file_outside(bundled, name, place):
    file = bundled / "manifest.json"
    values = json.loads(file.read_text())
    if place == "weights":
        values["weights"][name] = next(iter(values["weights"].values()))
    elif name:
        values["graphs"]["block"]["file"] = name
    else:
        pytest.skip('a graph without a file has ""')
    values.pop("digest")
    values["digest"] = digest(values)
    file.write_text(json.dumps(values))
    with pytest.raises(EngineError, match="not a file inside its folder"):
        Manifest.read(bundled)


LAYOUTS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from manifest.test_what_runs import latents
from consisid.engine import ConsisID
from consisid.engine.checkpoint.reading import Checkpoint
first, *others = (latents(ConsisID.open(folder)) for folder in sorted(Path(sys.argv[2]).glob("engine*")))
print([float((other - first).abs().max()) for other in others])
"""


def test_values_do_not_depend_on_the_layout_of_a_file(shallow_checkpoint, tmp_path):
    """A tensor that nothing reads moves all others in its file. Where they begin decides how MKL adds on processors
    without AVX2 and on those of other makers, which the variable stands for: latents were off by 1.6e-5."""
    for number, size in enumerate((0, 1, 6)):
        folder = shutil.copytree(shallow_checkpoint, tmp_path / f"checkpoint{number}", copy_function=os.link)
        for file in [
            file for part in ("transformer", "vae", "text_encoder") for file in folder.glob(f"{part}/*.safetensors")
        ]:
            state = load_file(file)
            file.unlink()
            save_file(state | ({"a": torch.zeros(size)} if size else {}), file)
        build(folder, tmp_path / f"engine{number}", backend="eager")
    places = {
        Checkpoint(f).tensor("transformer", "proj_out.bias").data_ptr() % 64 for f in tmp_path.glob("checkpoint*")
    }
    assert len(places) > 2
    command = [sys.executable, "-c", LAYOUTS, str(Path(__file__).parents[1]), str(tmp_path)]
    environment = os.environ | {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert json.loads(shown.splitlines()[-1]) == [0.0] * 2


@pytest.mark.parametrize(
    ("here", "built", "runs"),
    [
        ("AVX2", "AVX512", False), ("DEFAULT", "AVX2", False), ("AVX512", "AVX512", True), ("AVX512", "AVX2", True),
        ("AVX512", None, False), ("SVE256", "AVX2", False), ("SVE256", "SVE256", True), ("AVX2", "SVE256", False),
    ],
)  # fmt: skip
def test_a_processor_executes_what_it_knows(here, built, runs):
    assert executes(here, built) is runs


def compiled_for(folder: Path, cpu: str | None) -> Manifest:
    """The manifest of an engine as if a processor with these instructions had compiled it."""
    file, graph = folder / "manifest.json", folder / "graphs" / "block.pt2"
    graph.parent.mkdir()
    graph.write_bytes(b"")
    values = json.loads(file.read_text())
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    values["graphs"]["block"] |= {"file": "graphs/block.pt2", "bytes": 0, "sha256": empty, "backend": "inductor"}
    values["provenance"]["cpu"] = cpu
    if cpu is None:
        del values["provenance"]["cpu"]
    values.pop("digest")
    values["digest"] = digest(values)
    file.write_text(json.dumps(values))
    return Manifest.read(folder)


def test_an_engine_of_another_processor_is_refused(bundled, monkeypatch):
    cpu = torch.device("cpu")
    assert provenance(cpu)["cpu"] == torch.backends.cpu.get_cpu_capability()
    manifest = compiled_for(bundled, "AVX512")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(EngineError, match=r"was built with cpu AVX512, this machine has AVX2; rebuild it here"):
        manifest.verify(bundled, cpu)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    manifest.verify(bundled, cpu)


def test_an_engine_that_does_not_say_its_processor_is_refused(bundled):
    with pytest.raises(EngineError, match="was built with cpu None"):
        compiled_for(bundled, None).verify(bundled, torch.device("cpu"))


def test_the_sources_that_decide_a_graph():
    """Every folder as deep as it goes, and what writes a graph as ONNX; nothing that measures. Nothing is imported."""
    names = set(source_files())
    assert {
        "consisid.engine/graphs/table.py", "consisid.engine/graphs/grouped.py", "consisid.engine/networks/t5.py",
        "consisid.engine/backends/inductor.py", "consisid.engine/backends/tensorrt/build.py",
        "consisid.export/onnx/model.py", "consisid.export/onnx/functions.py", "consisid.kernels/joint_attention.py",
        "consisid.kernels/tuning.json", "consisid.kernels/aot/ptx.py",
    } <= names  # fmt: skip
    tools = ("timing", "cases", "autotune", "benchmark", "resources.json", "sass", "tools/", "pycache")
    assert not [name for name in names if any(tool in name for tool in tools)]
    command = "import sys; from consisid.engine.util.sources import kernels_hash as h; print(h(), *sys.modules)"
    shown = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert shown.split()[0] == kernels_hash()
    assert "consisid.export" not in shown.split()


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ("kernels/deep/er/new.py", True), ("engine/networks/deep/new.py", True), ("engine/graphs/table.py", True),
        ("export/onnx/functions.py", True), ("kernels/tuning.json", True), ("kernels/tools/benchmark.py", False),
        ("kernels/aot/resources.json", False), ("kernels/aot/sass.py", False),
        ("engine/text.py", False), ("export/cli.py", False),
    ],
)  # fmt: skip
def test_a_change_of_a_source_changes_the_hash(tmp_path, monkeypatch, changed, differs):
    """On a copy of the sources."""
    from importlib.machinery import ModuleSpec

    roots = {}
    for package in SOURCES:
        name = package.rpartition(".")[2]
        here = Path(__file__).parents[2] / name
        shutil.copytree(here, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        roots[package] = ModuleSpec(package, None)
        roots[package].submodule_search_locations = [str(tmp_path / name)]
    monkeypatch.setattr("consisid.engine.util.sources.find_spec", roots.__getitem__)
    before = kernels_hash()
    (tmp_path / changed).parent.mkdir(parents=True, exist_ok=True)
    with (tmp_path / changed).open("a") as file:
        file.write("\n# changed\n")
    assert (kernels_hash() != before) is differs


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000])
def test_names_that_no_system_takes(bundled, name):
    """In the call, and in a manifest."""
    with pytest.raises(EngineError, match="no engine folder at"):
        ConsisID.open(name)
    for change in (
        lambda v: v["weights"].update({name: next(iter(v["weights"].values()))}),
        lambda v: v.update(checkpoint=name),
    ):
        file = bundled / "manifest.json"
        original = file.read_text()
        values = json.loads(original)
        change(values)
        values.pop("digest")
        values["digest"] = digest(values)
        file.write_text(json.dumps(values))
        with pytest.raises(EngineError, match=r"(is missing|are not at)") as caught:
            ConsisID.open(bundled)
        assert len(str(caught.value)) <= 1100
        file.write_text(original)


MANIFESTS = {
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "not UTF-8": b'{"format": "' + b"\xff" * 80_000 + b'"}',
    "huge": b" " * (65 * 2**20),
    "number": b'{"format": ' + b"9" * 5000 + b"}",
    "NaN": b'{"format": NaN}',
    "half a pair": b'{"format": "\\ud800"}',
    "pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "null": b"null",
}


@pytest.mark.parametrize("content", MANIFESTS.values(), ids=MANIFESTS)
def test_what_is_no_manifest(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(EngineError, match=r"is damaged .*rebuild the folder with consisid-build") as caught:
        ConsisID.open(tmp_path)
    assert len(str(caught.value).replace(str(tmp_path), "")) <= 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("beginning", [b"\xff" * 8, b"\0" * 8, (2**40).to_bytes(8, "little"), b""])
def test_a_header_of_weights_that_is_none(bundled, beginning):
    """Neither read into memory nor a traceback: with the manifest's hash, and as the file of a build."""
    file = bundled / "checkpoint/transformer" / TRANSFORMER
    content = file.read_bytes()
    replace(file, beginning + content[len(beginning) :] if beginning else b"")
    with pytest.raises(EngineError, match=r"(was changed after the build|has 0 bytes)"):
        ConsisID.open(bundled)
    with pytest.raises(Exception, match="is missing or damaged"):
        build(bundled / "checkpoint", bundled.parent / "again", backend="eager")


@pytest.mark.parametrize("folder", [None, 3, 0, b"engine", [], {}, object()])
def test_what_is_no_path_of_an_engine(folder):
    with pytest.raises(InputError, match="A path is a text or a Path, not"):
        ConsisID.open(folder)


@pytest.mark.parametrize(
    "device",
    [3, -1, 3.5, True, [], {}, b"cpu", object(), "", "gpu", "meta", "mps", "xla", "\0", "cpu:99999999999", "x" * 5000,
     torch.device("meta")],
)  # fmt: skip
def test_what_is_no_device(shallow_folder, device):
    with pytest.raises(InputError, match="is not a device; it is cpu, cuda or cuda:0") as caught:
        ConsisID.open(shallow_folder, device=device)
    assert len(str(caught.value)) < 200


def test_the_cpu_is_one_device(shallow_folder, shallow):
    """By whatever number: its engines share their turns, and its peak is said to be the whole process'."""
    engine = ConsisID.open(shallow_folder, device="cpu:3")
    assert turn_of(engine.device) is turn_of(shallow.device)
    assert engine.generate(random_identity(TINY), "A man.", **SHORT).stats.summary().endswith("of the whole process")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch=0 has to be at least 1"), ({"batch": "x"}, "batch='x' is not a whole number"),
        ({"steps": -1}, "steps=-1 has to be at least 1"), ({"cfg": "x"}, "cfg='x' is none of batched, sequential"),
        ({"cfg": ["batched"]}, "is none of batched"), ({"shape": (1, 2, 3)}, r"shape=\(1, 2, 3\) is no VideoShape"),
    ],
)  # fmt: skip
def test_what_no_plan_is_made_of(shallow, options, message):
    with pytest.raises(InputError, match=message):
        shallow.plan("8GiB", **options)
