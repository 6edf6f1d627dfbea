"""The compiled engine against eager, the same weights and seed; one compiled engine per session, of the graphs of which
Inductor makes something. `make test-all` compiles all of them."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from support.drawn import random_weights
from support.engines import FUSED, PHOTO, SHALLOW, build_in_part, kept
from support.loras import both, lora
from support.people import random_identity
from support.reference import compare, reference_pipeline
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from consisid.engine import ConsisID
from consisid.engine.backends import backend, inductor
from consisid.engine.backends.inductor import INT32, most_samples, trace
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.errors import EngineError
from consisid.engine.graphs.graph import Graph, Spec, weight_shapes
from consisid.engine.graphs.table import graph_table
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, TINY, TINY_1_5, V1_5
from consisid.export import build

pytestmark = [pytest.mark.order(-9), pytest.mark.slow]

PROMPT = "A person walks."


@pytest.fixture(scope="module", params=["fused", pytest.param("whole", marks=pytest.mark.full)])
def compiled_folder(shallow_checkpoint, tmp_path_factory, request):
    """Graphs in float32, whole: every one but those of photographs. Minutes, where no earlier run has left it."""
    folder = tmp_path_factory.mktemp("shallow") / f"compiled-{request.param}"
    chosen = FUSED.__contains__ if request.param == "fused" else lambda name: name not in PHOTO
    kept(folder, lambda place: build_in_part(shallow_checkpoint, place, chosen, bundle=True))
    return folder


@pytest.fixture(scope="module")
def compiled(compiled_folder):
    return ConsisID.open(compiled_folder)


# The graphs that TINY_1_5 has otherwise than TINY, of which more is compiled above.
OTHERS_1_5 = ("time_embed", "image_embed", "embed", "head")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "embed" else [pytest.mark.full]) for name in OTHERS_1_5]
)
def test_compiled_graphs_of_patches_over_time(name, tmp_path):
    graph = graph_table(TINY_1_5, VideoShape.of(TINY_1_5, None, None, None))[name]
    folder = tmp_path / f"compiled-1.5-{name}"

    def make(place):
        place.mkdir()
        inductor.compile(graph, place / f"{name}.pt2", torch.device("cpu"), torch.float32)

    kept(folder, make)
    weights, names = random_weights(graph), list(weight_shapes(graph.module()))
    inputs = [spec.example({"B": 2, "N": 3}, torch.float32, "cpu") for spec in graph.specs().values()]
    device = torch.device("cpu")
    with torch.no_grad():
        right = backend("eager").load(graph, None, device, names)(inputs, weights)
        found = backend("inductor").load(graph, folder / f"{name}.pt2", device, names)(inputs, weights)
    assert (found - right).abs().max() < 1e-5


PREVIEW_GRAPHS = graph_table(PREVIEW, VideoShape.of(PREVIEW, None, None, None))


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"cfg": "sequential"}])
def test_compiled_equals_eager(shallow, compiled, options):
    """Whole loop and decode in float32: only the order of additions differs."""
    person, options = random_identity(TINY), {"seed": 5, "num_inference_steps": 3, **options}
    right, found = (
        engine.generate(person, PROMPT, output_type="latent", **options).latents for engine in (shallow, compiled)
    )
    assert (found - right).abs().max() < 1e-4
    frames = [engine.generate(person, PROMPT, **options).frames.astype(int) for engine in (shallow, compiled)]
    assert abs(frames[0] - frames[1]).max() <= 1


def test_compiled_graphs_take_other_weights(compiled, shallow_checkpoint):
    pipeline, state = reference_pipeline(shallow_checkpoint), lora(compiled.checkpoint)
    both(compiled, pipeline, lambda owner: owner.load_lora_weights(state))
    try:
        compare(compiled, pipeline, random_identity(TINY), num_frames=17)
    finally:
        compiled.unload_lora_weights()


def test_one_block_file_serves_any_weights(compiled):
    """Weights are arguments: weights that no layer has, and any batch."""
    networks = compiled.networks()
    graph = graph_table(TINY, compiled.shape)["block"]
    names = list(weight_shapes(graph.module()))
    reference = backend("eager").load(graph, None, torch.device("cpu"), names)
    generator = torch.Generator().manual_seed(0)
    weights = [0.05 * torch.randn(s, generator=generator) for s in weight_shapes(graph.module()).values()]
    for batch in (1, 2, 3):
        inputs = [spec.example({"B": batch}, torch.float32, "cpu") for spec in graph.specs().values()]
        with torch.no_grad():
            expected = reference(inputs, weights)
            found = networks.runners["block"](inputs, weights)
        assert (found - expected).norm() / expected.norm() < 1e-5


def test_strides_are_not_looked_at(compiled):
    """A package reads memory as it was traced; what calls it hands on tensors in that layout."""
    graph = graph_table(SHALLOW, compiled.shape)["block"]
    generator = torch.Generator().manual_seed(0)
    weights = [0.05 * torch.randn(s, generator=generator) for s in weight_shapes(graph.module()).values()]
    inputs = [spec.example({"B": 2}, torch.float32, "cpu") for spec in graph.specs().values()]
    strided = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in inputs]
    assert not any(x.is_contiguous() for x in strided)
    run = compiled.networks().runners["block"]
    with torch.no_grad():
        assert torch.equal(run(strided, weights), run(inputs, weights))


def test_another_size_is_refused(compiled):
    with pytest.raises(EngineError, match=r"built for 144x96, 17 frames .*--height 80 --width 64 --num-frames 17"):
        compiled.generate(random_identity(TINY), "A man.", height=80, width=64, num_inference_steps=1)


OPEN = """
import sys
import torch  # whose CUDA build of 2.14 asks ldconfig where libraries are
started = []
compilers = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.exec")
sys.addaudithook(lambda event, _: started.append(event) if event in compilers else None)
from consisid.engine import ConsisID, Identity
engine = ConsisID.open(sys.argv[1])
assert not [m for m in sys.modules if m.startswith(("diffusers", "transformers"))]
engine.generate(Identity.load(sys.argv[2]), "A man.", seed=1, num_inference_steps=1)
from torch._inductor import metrics
heavy = ("scipy", "diffusers.models", "diffusers.pipelines", "transformers.models", "consisid.export")
print(len(started), *started, metrics.generated_kernel_count, *[m for m in sys.modules if m.startswith(heavy)])
"""


def test_opening_compiles_nothing_and_imports_no_models(compiled_folder, tmp_path):
    person = random_identity(TINY).save(tmp_path / "me.safetensors")
    command = [sys.executable, "-c", OPEN, str(compiled_folder), str(person)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout.split() == ["0", "0"]


@pytest.mark.full
@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"cfg": "sequential"}])
def test_a_whole_engine_of_patches_over_time(engines_1_5, options):
    """Only the order of additions differs, as above."""
    person, options = random_identity(TINY_1_5), {"seed": 5, "num_inference_steps": 3, **options}
    right, found = (engine.generate(person, PROMPT, output_type="latent", **options).latents for engine in engines_1_5)
    assert (found - right).abs().max() < 1e-4
    frames = [engine.generate(person, PROMPT, **options).frames.astype(int) for engine in engines_1_5]
    assert abs(frames[0] - frames[1]).max() <= 1


@pytest.fixture(scope="module")
def engines_1_5(tmp_path_factory):
    """Eager, and with every graph but those of photographs compiled, of one chunk of frames."""
    folder = tmp_path_factory.mktemp("whole-1.5")
    variant = replace(TINY_1_5, name="custom", num_frames=9, vae=replace(SHALLOW.vae, invert_scale_latents=True))
    checkpoint = write_checkpoint(variant, folder / "checkpoint")
    build(checkpoint, folder / "eager", backend="eager", num_frames=9)
    build_in_part(checkpoint, folder / "compiled", lambda name: name not in PHOTO, num_frames=9)
    return [ConsisID.open(folder / name) for name in ("eager", "compiled")]


GRAPHS_1_5 = graph_table(V1_5, VideoShape.of(V1_5, None, None, None))
# Of 1.5 those that have the loop's sizes; the others are the preview's.
FULL_SIZE = [
    *(pytest.param(graph, id=f"preview-{name}") for name, graph in PREVIEW_GRAPHS.items()),
    *(pytest.param(GRAPHS_1_5[name], id=f"1.5-{name}") for name in (*OTHERS_1_5, "block", "last_block", "face")),
]


@pytest.mark.parametrize("graph", FULL_SIZE)
def test_every_full_size_graph_traces_on_the_meta_device(graph):
    program = trace(graph, torch.device("meta"), torch.bfloat16)
    outputs = [node for node in program.graph.nodes if node.op == "output"]
    assert len(outputs) == 1
    # Weights are arguments: nothing of the model is in the program itself.
    assert not program.state_dict
    assert not program.constants


def elements(graph, samples):
    """Of the largest tensor of a graph that is traced for up to that many, with that many."""
    program = trace(graph, torch.device("meta"), torch.bfloat16, samples)
    (symbol,) = program.range_constraints
    counts = [v.numel() for n in program.graph.nodes for v in tree_leaves(n.meta.get("val")) if isinstance(v, Tensor)]
    return max(int(count.node.expr.subs({symbol: samples})) for count in counts if isinstance(count, torch.SymInt))


BATCHED = {"text_project", "image_embed", "embed", "block", "last_block", "head", "face"}


def test_a_graph_is_compiled_for_as_many_samples_as_indices_of_32_bits_reach():
    """Inductor takes 64-bit indices where the range of a size does not exclude larger tensors."""
    batched = {name for name, graph in PREVIEW_GRAPHS.items() if any("B" in s.shape for s in graph.inputs.values())}
    assert batched == BATCHED
    found = {}
    for name in ("block", "embed", "face"):
        graph = PREVIEW_GRAPHS[name]
        found[name] = most_samples(graph, trace(graph, torch.device("meta"), torch.bfloat16))
        assert elements(graph, found[name]) <= INT32 < elements(graph, found[name] + 1)
    assert found["block"] == INT32 // (17776 * 4 * 3072)


class _Wide(nn.Module):
    def forward(self, x):
        return x + 1


def test_what_32_bits_do_not_reach_takes_any_batch():
    graph = Graph("wide", "", _Wide, {"x": Spec(("B", 2**15, 2**15))})
    program = trace(graph, torch.device("meta"), torch.bfloat16)
    assert most_samples(graph, program) == inductor.SIZES["B"][2]


def test_more_samples_than_a_graph_is_compiled_for_go_in_pieces(tmp_path, monkeypatch):
    graph, device = graph_table(TINY, VideoShape.of(TINY, None, None, None))["face"], torch.device("cpu")
    wide = max(spec.shape[1] * spec.shape[2] for spec in graph.inputs.values())
    monkeypatch.setattr(inductor, "INT32", 3 * wide - 1)  # as if two samples were all that the indices reach
    path = tmp_path / "face.pt2"
    inductor.compile(graph, path, device, torch.float32)
    names, loader, called = list(weight_shapes(graph.module())), torch._C._aoti.AOTIModelPackageLoader, []

    class Loader:
        def __init__(self, *given):
            self.package = loader(*given)
            self.get_metadata = self.package.get_metadata

        def run(self, tensors):
            called.append(len(tensors[0]))
            return self.package.run(tensors)

    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", Loader)
    run, eager = inductor.load(graph, path, device, names), backend("eager").load(graph, None, device, names)
    weights = [torch.randn(shape) for shape in weight_shapes(graph.module()).values()]
    for batch in (1, 2, 3, 5):
        inputs = [spec.example({"B": batch}, torch.float32, "cpu") for spec in graph.inputs.values()]
        expected = eager(inputs, weights)
        assert (run(inputs, weights) - expected).norm() / expected.norm() < 1e-5
    assert called == [1, 2, 2, 1, 2, 2, 1]


def test_warm_up_runs_every_graph_and_changes_nothing(compiled_folder):
    options = {"seed": 1, "num_inference_steps": 1, "output_type": "latent"}
    state = torch.get_rng_state()
    warm = ConsisID.open(compiled_folder, warm_up=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(warm.warmed) == set(warm.manifest.graphs)
    assert all(seconds > 0 for seconds in warm.warmed.values())
    cold = ConsisID.open(compiled_folder)
    assert not cold.warmed
    person = random_identity(TINY)
    assert torch.equal(*(e.generate(person, "A man.", **options).latents for e in (warm, cold)))
