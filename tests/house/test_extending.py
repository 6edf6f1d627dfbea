"""docs/extending.md: a new graph, kernel, backend, scheduler or variant is one file or row. A toy of each."""

import sys
from dataclasses import replace

import pytest
import torch
from support.people import random_identity
from torch import nn

from consisid.engine import ConsisID, manifest
from consisid.engine.backends import BACKENDS, Row
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.graphs.graph import Graph, Spec
from consisid.engine.graphs.table import graph_table
from consisid.engine.variants import TINY, VARIANTS
from consisid.export import build

pytestmark = pytest.mark.slow

OPTIONS = {"seed": 1, "num_inference_steps": 2, "num_frames": 9, "output_type": "latent"}


class Doubled(nn.Module):
    """A network that reads one tensor of the checkpoint."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(TINY.transformer.inner_dim))

    def forward(self, x):
        return 2 * x * self.weight


@pytest.mark.parametrize("memory", [None, "150MiB"])
def test_a_graph(tiny_checkpoint, tmp_path, monkeypatch, memory):
    """A row: it is built, opened and called like the others, and its weights come when its stage does."""
    dim = TINY.transformer.inner_dim
    row = Graph(
        "toy", "transformer", Doubled, {"x": Spec(("B", dim))}, renamed={"weight": "norm_final.weight"}, stage="prepare"
    )  # fmt: skip
    monkeypatch.setattr(manifest, "graph_table", lambda *given: graph_table(*given) | {"toy": row})
    build(tiny_checkpoint, tmp_path / "engine", backend="eager")
    engine, x = ConsisID.open(tmp_path / "engine", memory=memory, warm_up=True), torch.randn(3, dim)
    assert "toy" in engine.warmed
    weight = engine.checkpoint.tensor("transformer", "norm_final.weight")
    assert torch.equal(engine.networks().one("toy", x), 2 * x * weight)


def test_a_kernel():
    """A reference, a launch and a fake make an operator that torch.export keeps as one node."""
    from consisid.kernels import ops

    def launch(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    ops.FAKES["toy"] = torch.empty_like
    operator = ops._closed("toy", launch)

    class Module(nn.Module):
        def forward(self, x):
            return operator(x) * 2

    exported = torch.export.export(Module(), (torch.zeros(3),))
    assert [node.name for node in exported.graph.nodes if "toy" in str(node.target)] == ["toy"]
    assert torch.equal(exported.module()(torch.ones(3)), torch.full((3,), 4.0))


BACKEND = """
from consisid.engine.backends import eager
SUFFIX = ".toy"

def compile(graph, path, device, dtype):
    path.write_text(graph.name)

def load(graph, path, device, weights):
    assert path.read_text() == graph.name
    return eager.load(graph, None, device, weights)
"""


def test_a_backend(tiny, tiny_checkpoint, tmp_path, monkeypatch):
    """A file with compile and load side by side, and its row."""
    (tmp_path / "toy_backend.py").write_text(BACKEND)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKENDS, "toy", Row("toy_backend"))
    build(tiny_checkpoint, tmp_path / "engine", backend="toy")
    assert list((tmp_path / "engine").glob("**/*.toy"))
    person = random_identity(TINY)
    options = {**OPTIONS, "num_frames": 17}
    made = ConsisID.open(tmp_path / "engine").generate(person, "A man.", **options).latents
    assert torch.equal(made, tiny.generate(person, "A man.", **options).latents)
    sys.modules.pop("toy_backend")


class Euler:
    """The least that a scheduler is."""

    config, init_noise_sigma, order = {"num_train_timesteps": 1000}, 1.0, 1

    def set_timesteps(self, count, device=None):
        self.timesteps = torch.linspace(999, 1, count).long()

    def scale_model_input(self, latents, timestep):
        return latents

    def step(self, noise, timestep, latents, return_dict=True):
        return (latents - 0.1 * noise,)


def test_a_scheduler(tiny_folder):
    engine = ConsisID.open(tiny_folder)
    person = random_identity(TINY)
    usual = engine.generate(person, "A man.", **OPTIONS).latents
    engine.scheduler = Euler()
    found = [engine.generate(person, "A man.", **OPTIONS).latents for _ in range(2)]
    assert torch.equal(*found)
    assert not torch.equal(found[0], usual)


def test_a_variant(tmp_path, monkeypatch):
    """A row: other sizes, written, built and run under its name."""
    small = replace(TINY, name="toy", transformer=replace(TINY.transformer, num_layers=6, sample_frames=9))
    monkeypatch.setitem(VARIANTS, "toy", small)
    build(write_checkpoint("toy", tmp_path / "checkpoint"), tmp_path / "engine", backend="eager")
    engine = ConsisID.open(tmp_path / "engine")
    assert engine.variant.name == "toy"
    video = engine.generate(random_identity(small), "A man.", **OPTIONS)
    assert video.latents.shape[0] == 3
    assert video.stats.calls["block"] == 2 * 5
