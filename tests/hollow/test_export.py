"""What TINY hides from the exporter: the preview model's own face networks, with the PyTorch of this venv."""

import pytest
import torch

from consisid.engine.backends import inductor
from consisid.engine.graphs.table import graph_table
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW


@pytest.mark.parametrize("name", ["retinaface", "bisenet", "eva"])
def test_the_preview_models_face_networks_are_exported(name):
    """For photographs of any size: PyTorch 2.11 guards on the parity of a side that is halved."""
    graph = graph_table(PREVIEW, VideoShape.of(PREVIEW, None, None, None))[name]
    program = inductor.trace(graph, torch.device("meta"), torch.bfloat16)
    if any("H" in spec.shape for spec in graph.inputs.values()):
        assert any(isinstance(size, torch.SymInt) for node in program.graph.nodes if node.op == "placeholder"
                   for size in getattr(node.meta.get("val"), "shape", ()))  # fmt: skip
