"""What an engine folder is, and what a build would make, in words and as values."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from consisid.engine.backends import holds_weights
from consisid.engine.errors import InputError
from consisid.engine.graphs.grouped import LAYERS, grouped_table
from consisid.engine.graphs.spread import spread_groups, spread_table
from consisid.engine.graphs.table import graph_table
from consisid.engine.manifest import DTYPES, Manifest, provenance
from consisid.engine.memory.budget import parse
from consisid.engine.memory.costs import video_costs
from consisid.engine.memory.device import device_memory_free
from consisid.engine.memory.planner import plan
from consisid.engine.memory.plans import MemoryPlan
from consisid.engine.memory.simulate import machine_named
from consisid.engine.networks.positions import check_positions
from consisid.engine.shapes import VideoShape
from consisid.engine.util.device import check_device
from consisid.engine.variants import Variant

from .checkpoint_source import Source
from .compile import check_backend, check_layers, check_sequence, check_targets, find_unusable


def describe_folder(manifest: Manifest, folder: Path) -> str:
    """A few lines about an engine folder, from its manifest alone."""
    spec, made_with = manifest.spec, manifest.provenance
    used = Counter(entry.backend for entry in manifest.graphs.values())
    by = ", ".join(f"{count} by {name}" for name, count in used.most_common())
    size = sum(entry.bytes for entry in manifest.graphs.values())
    lines = [
        f"{folder}: {spec.variant.name}, {spec.shape}, {spec.dtype}, for {made_with.get('gpu', spec.device)}",
        f"  graphs   {len(manifest.graphs)} ({by}), {size / 2**20:.1f} MiB, key {spec.key[:12]}",
        f"  weights  {manifest.checkpoint} ({spec.checkpoint[:12]})",
        "  made     " + ", ".join(f"{name} {value}" for name, value in made_with.items()),
    ]
    rejected = [set(entry.rejected.items()) for entry in manifest.graphs.values()]
    everywhere = set.intersection(*rejected) if rejected else set()
    lines += [f"  not {who}: {reason}" for who, reason in sorted(everywhere)]
    for name, entry in manifest.graphs.items():
        times = ", ".join(f"{who} {ms:.3g} ms" for who, ms in entry.milliseconds.items())
        lines.append(f"  {name:<16} {entry.backend:<9} built in {entry.seconds:6.2f} s  {times}".rstrip())
        lines += [
            f"  {'':<16} not {who}: {reason}"
            for who, reason in entry.rejected.items()
            if (who, reason) not in everywhere
        ]
    if spec.targets and "refit" not in spec.flags:
        lines.append(f"  runs on  GPUs of {', '.join(spec.targets)}; a LoRA is not available on these engines")
    return "\n".join(lines)


def folder_values(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """The same as values of JSON."""
    spec = manifest.spec
    return {
        "folder": str(folder), "key": spec.key, "variant": spec.variant.name, "height": spec.height,
        "width": spec.width, "num_frames": spec.num_frames, "dtype": spec.dtype, "device": spec.device,
        "backend": spec.backend, "targets": spec.targets, "checkpoint": manifest.checkpoint,
        "provenance": manifest.provenance,
        "graphs": {name: _without(asdict(entry), "weights") for name, entry in manifest.graphs.items()},
    }  # fmt: skip


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


@dataclass(frozen=True)
class BuildPlan:
    """What a build would make.

    graphs: of each how many layers call it, and its parameters; what graphs share counts in each. memory: how a video
    would be made within a budget; None where none was given.
    """

    variant: Variant
    shape: VideoShape
    dtype: str
    backend: str
    runs_on: str
    graphs: Mapping[str, tuple[int, int]]
    memory: MemoryPlan | None = None

    def __str__(self) -> str:
        width, total = DTYPES[self.dtype].itemsize, sum(count for _, count in self.graphs.values())
        lines = [
            f"{self.variant.name}, {self.shape}, {self.shape.video_tokens} video tokens, {self.dtype}, "
            f"backend {self.backend}, for {self.runs_on}",
            f"  {'graph':<16} {'calls with':>12} {'M parameters':>14} {'GB':>8}",
        ]
        for name, (layers, count) in self.graphs.items():
            lines.append(f"  {name:<16} {layers:>6} layers {count / 1e6:>14.1f} {count * width / 1e9:>8.2f}")
        lines.append(
            f"  {'in all':<29} {total / 1e6:>14.1f} {total * width / 1e9:>8.2f}  (what graphs share counts twice)"
        )
        return "\n".join(lines if self.memory is None else [*lines, "", str(self.memory)])

    def values(self) -> dict[str, Any]:
        """The same as values of JSON; bytes and seconds."""
        height, width, frames = self.shape.pixels
        found = {
            "variant": self.variant.name, "height": height, "width": width, "num_frames": frames, "dtype": self.dtype,
            "backend": self.backend, "runs_on": self.runs_on,
            "graphs": {name: {"layers": layers, "parameters": count} for name, (layers, count) in self.graphs.items()},
        }  # fmt: skip
        if (memory := self.memory) is not None:
            found["memory"] = {
                "budget": memory.budget, "peak": memory.peak, "seconds": memory.seconds, "weights": memory.mode,
                "cfg": memory.cfg, "tile": memory.tile, "machine": memory.machine.name,
                "stages": {stage.name: {"peak": stage.peak, "seconds": stage.seconds} for stage in memory.stages},
            }  # fmt: skip
        return found


def plan_build(
    checkpoint: str,
    *,
    backend: str,
    dtype: str | None,
    device: str,
    random_weights: bool,
    variant: str | None = None,
    memory: int | str | None = None,
    targets: Sequence[str] = (),
    flags: Sequence[str] = (),
    layers_per_shard: int = LAYERS,
    sequence: int = 1,
    **size: int | None,
) -> BuildPlan:
    """What a build would make, and with `memory` how it would run within that budget; nothing is written and no
    weights are read.

    Raises:
        MemoryBudgetError: a budget that is too small.
        BackendError: a backend that cannot make what was asked for.
        InputError: a budget of what is free here, for another GPU.
    """
    check_backend(backend)
    check_targets(backend, targets, flags)
    check_layers(layers_per_shard)
    check_sequence(sequence)
    if targets and isinstance(memory, str) and memory.strip().lower() == "auto":
        raise InputError("--memory auto is what is free on the GPU here; with --target give a number.")
    place = torch.device("cpu") if targets else check_device(device)
    find_unusable(backend, place)
    kind = "cuda" if targets else place.type
    source = Source.find(checkpoint, random_weights, bundle=False, weights=variant)
    shape = VideoShape.of(source.variant, size["height"], size["width"], size["num_frames"])
    check_positions(source.variant.transformer, shape)
    dtype = dtype or ("float32" if kind == "cpu" else "bfloat16")
    holds = holds_weights(backend)
    table = grouped_table(source.variant, shape, layers_per_shard) if holds else graph_table(source.variant, shape)
    if sequence > 1:
        table |= (spread_groups if holds else spread_table)(source.variant, shape, sequence)
    graphs = {
        name: (len(graph.layers), len(graph.layers) * sum(map(prod, graph.weights.values())))
        for name, graph in table.items()
    }
    planned = None
    if memory is not None:
        gpu = provenance(place).get("gpu", "")
        found = video_costs(source.variant, shape, DTYPES[dtype], device=kind)
        planned = plan(parse(memory, device_memory_free(place)), found, machine_named(gpu), tiling=True)
    return BuildPlan(source.variant, shape, dtype, backend, ", ".join(targets) or str(place), graphs, planned)
