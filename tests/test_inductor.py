"""The compiled engine against eager, the same weights and seed; one compiled engine per session."""

import subprocess
import sys

import pytest
import torch
from conftest import random_identity

from consisid.engine import ConsisID
from consisid.engine.backends import backend
from consisid.engine.backends.inductor import trace
from consisid.engine.errors import EngineError
from consisid.engine.graphs import graph_table, weight_shapes
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, TINY

PREVIEW_GRAPHS = graph_table(PREVIEW, VideoShape.of(PREVIEW, None, None, None))


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"cfg": "sequential"}])
def test_compiled_equals_eager(tiny, compiled, options):
    """Whole loop and decode in float32: only the order of additions differs."""
    person, options = random_identity(TINY), {"seed": 5, "num_inference_steps": 3, **options}
    eager = tiny.generate(person, "A person walks.", output_type="latent", **options).latents
    found = compiled.generate(person, "A person walks.", output_type="latent", **options).latents
    assert (found - eager).abs().max() < 1e-4
    frames = [engine.generate(person, "A person walks.", **options).frames.astype(int) for engine in (tiny, compiled)]
    assert abs(frames[0] - frames[1]).max() <= 1


def test_compiled_identify_equals_eager(tiny, compiled, face):
    eager, found = (engine.identify(face, aligned=True) for engine in (tiny, compiled))
    assert (eager.id_cond - found.id_cond).abs().max() < 1e-4
    for ours, theirs in zip(eager.id_vit_hidden, found.id_vit_hidden, strict=True):
        assert (ours - theirs).abs().max() < 1e-4


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


def test_another_size_is_refused(compiled):
    with pytest.raises(EngineError, match=r"built for 144x96, 17 frames .*--height 80 --width 64 --num-frames 17"):
        compiled.generate(random_identity(TINY), "A man.", height=80, width=64, num_inference_steps=1)


OPEN = """
import sys
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


@pytest.mark.parametrize("name", PREVIEW_GRAPHS)
def test_every_full_size_graph_traces_on_the_meta_device(name):
    program = trace(PREVIEW_GRAPHS[name], torch.device("meta"), torch.bfloat16)
    outputs = [node for node in program.graph.nodes if node.op == "output"]
    assert len(outputs) == 1
    # Weights are arguments: nothing of the model is in the program itself.
    assert not program.state_dict
    assert not program.constants


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
