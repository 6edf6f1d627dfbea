"""The path of a build: a checkpoint becomes graphs, a backend compiles each, and a manifest says what came of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from consisid.engine.backends import holds_weights
from consisid.engine.backends.tensorrt.library import BuildOptions
from consisid.engine.backends.tensorrt.plugins import ATTRIBUTES
from consisid.engine.errors import InputError, shown
from consisid.engine.graphs.grouped import LAYERS
from consisid.engine.lora.weights import LoraPatchedCheckpoint
from consisid.engine.manifest import (
    DTYPES,
    BuildSpec,
    GraphEntry,
    Manifest,
    describe_weights,
    kernels_hash,
    provenance,
    weights_hash,
)
from consisid.engine.networks.positions import check_positions
from consisid.engine.shapes import VideoShape
from consisid.engine.util.device import check_device
from consisid.engine.util.files import as_path
from consisid.engine.variants import Variant
from consisid.engine.weights.device import DeviceWeights

from .checkpoint_source import Source
from .compile import check_backend, check_layers, check_sequence, check_targets, find_unusable, not_worth_it
from .entries import compiled
from .staging import staging


def build(
    checkpoint: str | Path | Variant,
    output: str | Path,
    *,
    backend: str = "auto",
    dtype: str | None = None,
    device: str = "cpu",
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    bundle: bool = False,
    variant: str | None = None,
    random_weights: bool = False,
    targets: Sequence[str] = (),
    layers_per_shard: int = LAYERS,
    sequence: int = 1,
    flags: Sequence[str] = (),
    timing_cache: Path | None = None,
    report: Callable[[str, GraphEntry, int], None] = lambda name, entry, total: None,
) -> Manifest:
    """Build an engine folder.

    Args:
        checkpoint: a folder in the Hugging Face layout, a hub id, or "tiny" or "tiny-1.5" for a small one with random
            weights.
        output: the engine folder; it must not exist, and it appears only when it is complete. A build that was killed
            goes on where it was.
        backend: who compiles the graphs; "auto" times the candidates per graph and keeps the fastest that is right, and
            keeps a small model eager on a CPU.
        dtype: "bfloat16", "float16" or "float32"; default float32 on a CPU, else bfloat16.
        device: where the engine will run.
        height, width, num_frames: of the videos; default what the model was trained at.
        bundle: copy the checkpoint into the folder instead of referring to it by path and hash.
        variant: which of the checkpoint's files hold the weights, as in diffusers: "fp16" for model.fp16.safetensors.
        random_weights: `checkpoint` is a variant or its name, and its weights are random and stored nowhere.
        targets: compute capabilities of other GPUs, such as "sm_89", to run on; no GPU is needed here.
        layers_per_shard: of the transformer and of the text encoder, in engines that hold their weights.
        sequence: devices that may share the tokens of a video (ulysses times ring of a mesh); graphs for them are
            compiled too.
        flags: of manifest.FLAGS, for such engines.
        timing_cache: a file of measurements that builds of such engines share.
        report: called after each graph with its name, its entry and the number of graphs.

    Raises:
        ConsisIDError: an input that cannot be used, before anything is written; or a graph that cannot be compiled.
    """
    backend = check_backend(backend)
    check_targets(backend, targets, flags)
    check_layers(layers_per_shard)
    check_sequence(sequence)
    place = torch.device("cpu") if targets else check_device(device)
    runs_on = "cuda" if targets else place.type
    unusable = find_unusable(backend, place)
    dtype = dtype or ("float32" if runs_on == "cpu" else "bfloat16")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"dtype={shown(dtype)} is none of {', '.join(DTYPES)}.")
    if not as_path(output).name:
        raise InputError(f"output={shown(str(output))} is no name of a folder to make; give one.")
    source = Source.find(checkpoint, random_weights, bundle, variant)
    shape = VideoShape.of(source.variant, height, width, num_frames)
    check_positions(source.variant.transformer, shape)
    with staging(Path(output), source.identity) as work:
        opened = source.open(work.folder)
        weights = describe_weights(opened)
        origin = source.hash or weights_hash(weights)
        holds = holds_weights(backend)
        spec = BuildSpec(
            opened.variant, *shape.pixels, dtype, backend, runs_on, kernels_hash(), origin,
            tuple(targets), layers_per_shard if holds else 0, tuple(flags), sequence,
        )  # fmt: skip
        options = BuildOptions(
            tuple(targets), holds, "refit" in flags, "version_compatible" in flags, "hardware_compatible" in flags,
            timing_cache, tuple(ATTRIBUTES) if "plugins" in flags else (),
        )  # fmt: skip
        table, store = spec.every_graph(), DeviceWeights(LoraPatchedCheckpoint(opened), place, DTYPES[dtype])
        unusable = not_worth_it(backend, table, place) | unusable
        machine = provenance(place)
        work.begin(spec, machine)
        entries = {}
        for name, graph in table.items():
            if holds:  # what one engine holds, no other reads
                store = DeviceWeights(LoraPatchedCheckpoint(opened), place, DTYPES[dtype])
            entry = work.finished(name) or compiled(graph, work.folder, spec, store, options, unusable)
            work.finish(name, entry)
            entries[name] = entry
            report(name, entry, len(table))
        inside = opened.path.is_relative_to(work.folder.absolute())
        root = opened.path.relative_to(work.folder.absolute()) if inside else opened.path.resolve()
        manifest = Manifest(spec, machine, entries, str(root), weights)
        work.end(manifest, Path(output))
    return manifest
