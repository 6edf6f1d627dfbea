"""The whole TINY pipeline through the Triton kernels, interpreted, against diffusers' pipeline.

float32, two steps, frames of 16 x 32 in a first and a next chunk of a narrow and shallow decoder: the interpreter takes
minutes for more. The bound is the contract's for a whole loop; what separates the two is the order of additions.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from support.engines import SHALLOW
from support.people import random_identity
from support.reference import FRAMES, LATENTS, reference_pipeline, run_reference

from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.variants import TINY
from consisid.export import build

pytestmark = [pytest.mark.order(-6), pytest.mark.slow]

SCRIPT = """
import json, sys
from collections import Counter
sys.path.insert(0, sys.argv[2])
import pytest
import torch
from safetensors.torch import save_file
from support.people import random_identity
from triton.runtime import interpreter
from consisid.engine import ConsisID
from consisid.engine.decode.frames import finish

launches, launch = Counter(), interpreter.GridExecutor.__call__
def counted(executor, *arguments, **keywords):
    launches[" ".join([executor.fn.__name__, *(name for name in ("RESIDUAL", "NORM") if keywords.get(name))])] += 1
    return launch(executor, *arguments, **keywords)
interpreter.GridExecutor.__call__ = counted

engine = ConsisID.open(sys.argv[1])
person, options = random_identity(engine.variant), {"seed": 3, "num_inference_steps": 2, "output_type": "latent"}
latents = engine.generate(person, "A person walks.", **options).latents
with torch.no_grad():
    frames = finish(engine.networks(), latents[None] / engine.variant.vae.scaling_factor, "pt")[0]
file = {"latents": latents, "frames": frames.contiguous()}
save_file(file, sys.argv[3], {"launches": json.dumps(launches), "calls": json.dumps(engine.networks().calls)})
"""
SMALL = replace(
    TINY, name="custom", height=16, width=32,
    transformer=replace(TINY.transformer, sample_height=2, sample_width=4),
    vae=replace(SHALLOW.vae, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, sample_height=16, sample_width=32),
)  # fmt: skip
BLOCKS, FACES, NORMS = 2 * 4, 2 * 2, 2 * 21  # in two steps, both halves of guidance at once; in two chunks
LAUNCHES = {
    "joint_attention_kernel": BLOCKS,
    "qk_norm_rope_kernel": BLOCKS,
    "modulated_norm_kernel NORM": BLOCKS,
    "modulated_norm_kernel RESIDUAL NORM": BLOCKS,
    "modulated_norm_kernel RESIDUAL": BLOCKS,
    **{f"face_{part}_kernel": FACES for part in ("fold", "statistics", "scores", "update")},
    **{f"group_{part}_kernel": NORMS for part in ("statistics", "combine", "norm_silu")},
}


def test_the_pipeline_on_interpreted_kernels_is_diffusers(tmp_path, request):
    checkpoint = write_checkpoint(SMALL, tmp_path / "checkpoint")
    build(checkpoint, tmp_path / "engine", backend="eager")
    file = tmp_path / "video.safetensors"
    tests = str(request.config.rootpath / "tests")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "engine"), tests, str(file)]
    subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    with safe_open(file, "pt") as opened:
        counted = {name: json.loads(value) for name, value in opened.metadata().items()}
    assert counted["launches"] == LAUNCHES
    assert counted["calls"]["decode_next"] == 1
    options = {"seed": 3, "num_inference_steps": 2}
    latents, frames = run_reference(
        reference_pipeline(checkpoint), random_identity(SMALL), "A person walks.", **options
    )
    found = load_file(file)
    assert (found["latents"] - latents).abs().max() < LATENTS
    assert abs(found["frames"].permute(0, 2, 3, 1).numpy() - frames).max() <= FRAMES
