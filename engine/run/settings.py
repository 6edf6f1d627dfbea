"""What a video was made with, for its stats, its file and whoever makes it again: of a run.Run, which imports this."""

from numbers import Integral, Real
from typing import Any

from consisid.kernels import describe

from ..shortcuts import summary
from ..util.cli import installed_version
from ..video import Stats
from .clock import Clock

APPROXIMATE = {"tiled": "the decoder in tiles", "tiled-reference": "encoder and decoder in diffusers' tiles"}
SAME = ("num_inference_steps", "guidance_scale", "use_dynamic_cfg", "eta", "seed", "num_videos_per_prompt")


def settings_of(run: Any) -> list[dict[str, Any]]:
    """Values of JSON for each video of a run, by the names of generate's arguments.

    engine: which model, and the key of its folder's manifest; loras: name, weight and sha256 of the changes; seed: None
    where a generator or latents were given; index: of the video among those of the call; approximations: by which the
    video differs from the exact one.
    """
    request, options = run.request, run.options
    height, width, frames = request.shape.pixels
    decode, tile = run.decoding
    common = {
        "consisid": installed_version(),
        "engine": {"variant": run.engine.variant.name, "key": run.engine.manifest.spec.key},
        **{name: number(getattr(options, name)) for name in SAME},
        "height": height, "width": width, "num_frames": frames,
        "scheduler": type(run.scheduler).__name__, "dtype": run.engine.manifest.spec.dtype, "cfg": run.cfg,
        "decode": decode, "tile": None if tile is None else [int(side) for side in tile],
        "loras": [{"name": lora.source, "weight": float(weight), "sha256": lora.key} for lora, weight in run.loras],
        "schedule": {name: [float(x) for x in values] for name, values in options.schedule.items()},
        "shortcuts": options.left_out.names,
        "approximations": [*approximations_of(run), *([APPROXIMATE[decode]] if decode in APPROXIMATE else [])],
    }  # fmt: skip
    if options.generator is not None or options.latents is not None:
        common["seed"] = None
    negative = options.negative_prompt
    found = []
    for index in range(request.batch):
        prompt = index // options.num_videos_per_prompt
        found.append({
            "prompt": None if request.texts is None else request.texts[prompt],
            "negative_prompt": negative if isinstance(negative, str | None) else negative[prompt],
            **common,
            "index": index,
            "videos": request.batch,
        })  # fmt: skip
    return found


def approximations_of(run: Any) -> list[str]:
    """What the loop leaves out, a line each."""
    steps = run.loop_steps if run.decides is None else run.decides.steps
    return summary(run.options.left_out, steps, run.request.guided)


def number(value: Any) -> Any:
    """A number of any library as JSON has it; what is none stays."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value


def modes_of(run: Any) -> dict[str, str]:
    """What was chosen, for stats."""
    engine, t = run.engine, run.engine.variant.transformer
    tokens = t.max_text_seq_length + run.request.shape.video_tokens
    keys = run.request.batch, tokens, t.num_attention_heads, t.attention_head_dim
    modes = {"cfg": run.cfg, "dtype": engine.manifest.spec.dtype, "device": str(engine.device)}
    if engine.mesh is not None:
        modes["devices"] = f"{engine.mesh.size}, {engine.mesh}"
    modes["attention"] = describe(engine.device, keys, engine.dtype)
    modes["graphs"] = "none" if engine.weights.captures is None else "block"
    if run.decoding[0] not in (None, "whole"):
        modes["decode"] = " ".join(str(part) for part in run.decoding if part is not None)
    if run.plan is not None:
        modes["memory"] = run.plan.mode
        if run.plan.rows > 1:
            modes["rows"] = f"feed-forward in {run.plan.rows} pieces"
    if run.loras:
        modes["lora"] = ", ".join(f"{len(lora.changes)} tensors at {weight:g}" for lora, weight in run.loras)
    if run.restarts:
        modes["restarts"] = f"{run.restarts} after running out of memory"
    if approximations := approximations_of(run):
        modes["shortcuts"] = "; ".join(approximations)
    if engine.weights.source:
        modes["weights from"] = engine.weights.source
    return modes


def stats_of(run: Any, clock: Clock) -> Stats:
    """Times and peaks of a run."""
    stats, others = clock.stats(modes_of(run), dict(run.networks.calls)), run.engine.share.others
    stats.streamed_bytes, stats.stalls = run.copied, run.loop_stalls
    stats.allocated_bytes = max(0, stats.allocated_bytes - run.engine.share.others_allocated)
    stats.peak_bytes = max(stats.peak_bytes, *run.peaks.values(), 0) - others
    stats.stage_bytes = {name: peak - others for name, peak in run.peaks.items()}
    stats.predicted_bytes = run.plan.reserved if run.plan is not None else None
    return stats
