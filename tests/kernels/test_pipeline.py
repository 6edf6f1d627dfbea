"""The whole TINY pipeline through the Triton kernels, interpreted, against the same pipeline on the references.

float32, two steps and nine frames: the interpreter takes minutes for more. The bound is the contract's for a whole
loop; what separates the two is the order of additions.
"""

import os
import subprocess
import sys

from safetensors.torch import load_file

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
from conftest import random_identity
from safetensors.torch import save_file
from consisid.engine import ConsisID
from consisid.engine.variants import TINY
from consisid.kernels import joint_attention
options = {"seed": 3, "num_inference_steps": 2, "num_frames": 9}
engine, person = ConsisID.open(sys.argv[1]), random_identity(TINY)
latents = engine.generate(person, "A person walks.", output_type="latent", **options).latents
with torch.no_grad():
    from consisid.engine.decode import finish
    from consisid.engine.shapes import VideoShape
    networks = engine.networks(VideoShape.of(TINY, None, None, 9))
    frames = finish(networks, latents[None] / TINY.vae.scaling_factor, "pt")[0]
used = "consisid.kernels.ops" in sys.modules
save_file({"latents": latents, "frames": frames.contiguous(), "used": torch.tensor(used)}, sys.argv[3])
"""


def test_the_pipeline_on_interpreted_kernels_is_the_pipeline(tiny_folder, tmp_path, request):
    results = []
    for interpret in ("0", "1"):
        file = tmp_path / f"{interpret}.safetensors"
        command = [sys.executable, "-c", SCRIPT, str(tiny_folder), str(request.config.rootpath / "tests"), str(file)]
        subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": interpret})
        results.append(load_file(file))
    plain, kernels = results
    assert (bool(plain["used"]), bool(kernels["used"])) == (False, True)
    assert (plain["latents"] - kernels["latents"]).abs().max() < 1e-4
    assert (plain["frames"] - kernels["frames"]).abs().max() <= 1 / 255
