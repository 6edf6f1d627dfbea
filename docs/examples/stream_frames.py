"""Frames while they are decoded: each is written as a picture as soon as it is there.

python docs/examples/stream_frames.py engines/preview me.jpg --output frames
"""

import argparse
from pathlib import Path

from PIL import Image

from consisid.engine import ConsisID

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument("engine", help="engine folder made by consisid-build")
p.add_argument("photo", help="photo of the person")
p.add_argument("--prompt", default="A person walks through fresh snow, breath visible in the cold air.")
p.add_argument("--steps", type=int, default=50)
p.add_argument("--output", type=Path, default=Path("frames"), help="folder")
options = p.parse_args()

engine = ConsisID.open(options.engine)
video = engine.generate(
    options.photo, options.prompt, seed=42, num_inference_steps=options.steps, output_type="stream"
)  # fmt: skip
options.output.mkdir(parents=True, exist_ok=True)
for number, frame in enumerate(video.frames):  # uint8 [H, W, 3]; read once
    Image.fromarray(frame).save(options.output / f"{number:03d}.png")
    print(f"frame {number}", flush=True)
print(video.stats.summary())  # whole once the last frame has been read
