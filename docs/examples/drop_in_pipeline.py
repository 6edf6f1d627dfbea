"""A script for diffusers with one import changed: the pipeline runs an engine folder, and finds the face itself.

python docs/examples/drop_in_pipeline.py engines/preview me.jpg --output video.mp4
"""

import argparse

import torch
from diffusers.utils import export_to_video

from consisid.engine import ConsisIDPipeline

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument("engine", help="engine folder made by consisid-build, a checkpoint, or a hub id")
p.add_argument("photo", help="photo of the person")
p.add_argument("--prompt", default="A person walks through fresh snow, breath visible in the cold air.")
p.add_argument("--steps", type=int, default=50)
p.add_argument("--output", default="video.mp4")
options = p.parse_args()

pipe = ConsisIDPipeline.from_pretrained(options.engine)
frames = pipe(
    image=options.photo,
    prompt=options.prompt,
    height=None,  # None is what the model was trained at; diffusers' 480, 720 and 49 are the defaults
    width=None,
    num_frames=None,
    num_inference_steps=options.steps,
    generator=torch.Generator().manual_seed(42),
).frames[0]
print(export_to_video(frames, options.output, fps=8))
