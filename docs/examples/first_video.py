"""A first video: one photo, one prompt, one file.

python docs/examples/first_video.py engines/preview me.jpg --output first.mp4
"""

import argparse

from consisid.engine import ConsisID

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument("engine", help="engine folder made by consisid-build")
p.add_argument("photo", help="photo of the person")
p.add_argument("--prompt", default="A person walks through fresh snow, breath visible in the cold air.")
p.add_argument("--seed", type=int, default=42)
p.add_argument("--steps", type=int, default=50)
p.add_argument("--output", default="first.mp4")
options = p.parse_args()

engine = ConsisID.open(options.engine)
person = engine.identify(options.photo)
video = engine.generate(person, options.prompt, seed=options.seed, num_inference_steps=options.steps)
print(video.save(options.output))
print(video.stats.summary())
