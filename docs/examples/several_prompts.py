"""Several videos of one person in one call: the face is looked at once, each prompt gets a file of its own.

python docs/examples/several_prompts.py engines/preview me.jpg --output videos
"""

import argparse
from pathlib import Path

from consisid.engine import ConsisID

PROMPTS = [
    "A person walks through fresh snow, breath visible in the cold air.",
    "A person reads a newspaper in a cafe, morning light from the left.",
]

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument("engine", help="engine folder made by consisid-build")
p.add_argument("photo", help="photo of the person")
p.add_argument("--prompts", nargs="+", default=PROMPTS)
p.add_argument("--seed", type=int, default=42)
p.add_argument("--steps", type=int, default=50)
p.add_argument("--output", type=Path, default=Path("videos"), help="folder")
options = p.parse_args()

engine = ConsisID.open(options.engine)
person = engine.identify(options.photo)
videos = engine.generate(person, options.prompts, seed=options.seed, num_inference_steps=options.steps)
options.output.mkdir(parents=True, exist_ok=True)
for number, (prompt, video) in enumerate(zip(options.prompts, videos, strict=True), 1):
    print(video.save(options.output / f"{number}.mp4"), prompt)
