"""The official checkpoints, counted from their shapes: parameters, arithmetic of a step, and what fits which memory.

python tests/support/count_models.py --output docs/models.md
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from consisid.bench.core.flops import decode_flops, step_cost, text_flops
from consisid.engine.graphs.graph import weight_shapes
from consisid.engine.graphs.table import graph_table
from consisid.engine.memory import planner
from consisid.engine.memory.costs import video_costs
from consisid.engine.memory.simulate import MACHINES
from consisid.engine.shapes import VideoShape
from consisid.engine.util.cli import run
from consisid.engine.util.files import atomic_file
from consisid.engine.variants import PREVIEW, V1_5, Variant

GIB = 2**30
MODELS = (PREVIEW, V1_5)
BUDGETS = (4, 6, 8, 24)  # GiB
MACHINE = "h200"
# Which tensors of the transformer belong together, by what is in their names; the first that fits.
TRANSFORMER = {
    "facial extractor": "local_facial_extractor", "face attention": "perceiver_cross_attention", "feed-forward": ".ff.",
    "attention": ".attn1.", "adaptive norms": ".linear.", "embeddings and output": "",
}  # fmt: skip


def parameters(variant: Variant) -> Counter[str]:
    """Numbers in a checkpoint, by part; in the transformer by kind."""
    counts, seen = Counter[str](), set()
    for graph in graph_table(variant, VideoShape.of(variant, None, None, None)).values():
        for name, shape in weight_shapes(graph.module()).items():
            for layer in range(len(graph.layers)):
                sources = (graph.part, *graph.sources(name, layer))
                if sources not in seen:
                    seen.add(sources)
                    counts[_kind(graph.part, sources[1])] += shape.numel()
    return counts


def _kind(part: str, name: str) -> str:
    if part == "transformer":
        return next(kind for kind, mark in TRANSFORMER.items() if mark in name)
    if part == "vae":
        return "VAE " + name.partition(".")[0]
    return {"text_encoder": "text encoder"}.get(part, "face models")


def counted(variant: Variant) -> dict[str, str]:
    """Rows of the first table."""
    shape, found = VideoShape.of(variant, None, None, None), parameters(variant)
    cost = step_cost(variant, shape)
    rows = {kind: f"{count / 1e6:,.1f} M" for kind, count in found.items()}
    rows["all parameters; in bfloat16"] = f"{found.total() / 1e6:,.0f} M; {2 * found.total() / 1e9:.1f} GB"
    rows["latent frames in the loop"] = f"{shape.loop_frames}" + (f", {shape.padding} padding" * bool(shape.padding))
    rows["tokens: text + video"] = f"{variant.transformer.max_text_seq_length} + {shape.video_tokens:,}"
    rows["a step with guidance: attention"] = f"{2 * cost.attention / 1e12:.1f} TFLOP"
    rows["a step with guidance: linear layers"] = f"{2 * cost.linears / 1e12:.1f} TFLOP"
    rows["a step with guidance: face attention"] = f"{2 * cost.face / 1e12:.1f} TFLOP"
    rows["a step with guidance"] = f"{2 * cost.total / 1e12:.1f} TFLOP"
    rows["a prompt"] = f"{text_flops(variant, shape) / 1e12:.1f} TFLOP"
    rows["the decoder"] = f"{decode_flops(variant, shape) / 1e12:.1f} TFLOP"
    return rows


def plan_row(variant: Variant, budget: int | None) -> str:
    """A row of the second table."""
    costs = video_costs(variant, VideoShape.of(variant, None, None, None), torch.bfloat16, device="cuda")
    made = planner.plan(budget, costs, MACHINES[MACHINE], tiling=True)
    loop, tile = made.stage("denoise"), made.tile
    cells = [
        variant.name, "none" if budget is None else f"{budget // GIB} GiB", f"{made.peak / GIB:.2f} GiB", made.mode,
        loop.cfg, "whole" if tile is None else f"tiles of {tile[0]}x{tile[1]}", f"{loop.copied / 1e9 / 50:.1f} GB",
        f"{loop.stall:.3f} s",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def text() -> Iterator[str]:
    """Lines of docs/models.md."""
    tables = [counted(variant) for variant in MODELS]
    yield "# The official checkpoints, counted"
    yield ""
    yield "`python tests/support/count_models.py --output docs/models.md`; counted, nothing was measured."
    yield "49 frames of 720x480."
    yield ""
    yield f"| | {' | '.join(variant.hub_id or variant.name for variant in MODELS)} |"
    yield "|---|---|---|"
    for name in tables[0]:
        yield f"| {name} | {' | '.join(table[name] for table in tables)} |"
    yield ""
    yield "What is planned within a budget, 50 steps in bfloat16 with the speeds of an H200 (copies over PCIe 5.0)."
    yield "Copied is what the loop fetches, per step; stall is what a step waits for it."
    yield ""
    yield "| model | budget | peak | weights of the loop | guidance | decoder | copied | stall |"
    yield "|---|---|---|---|---|---|---|---|"
    for budget in (None, *(size * GIB for size in reversed(BUDGETS))):
        for variant in MODELS:
            yield plan_row(variant, budget)


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser("count_models", description=__doc__)
    p.add_argument("--output", type=Path, required=True, help="the markdown file to write")
    options = p.parse_args(arguments)

    def write() -> None:
        content = "\n".join([*text(), ""])
        with atomic_file(options.output) as aside:
            aside.write_text(content)

    return run("count_models", write)


if __name__ == "__main__":
    sys.exit(main())
