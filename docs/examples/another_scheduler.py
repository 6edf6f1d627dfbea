"""Another scheduler of diffusers in the place of the checkpoint's own.

python docs/examples/another_scheduler.py engines/preview me.jpg --scheduler UniPCMultistepScheduler --steps 25
"""

import argparse

import diffusers

from consisid.engine import ConsisID

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument("engine", help="engine folder made by consisid-build")
p.add_argument("photo", help="photo of the person")
p.add_argument("--scheduler", default="UniPCMultistepScheduler", help="a class of diffusers; see docs/schedulers.md")
p.add_argument("--prompt", default="A person walks through fresh snow, breath visible in the cold air.")
p.add_argument("--steps", type=int, default=25)
p.add_argument("--output", default="video.mp4")
options = p.parse_args()

engine = ConsisID.open(options.engine)
print(f"{type(engine.scheduler).__name__} -> {options.scheduler}")
engine.scheduler = getattr(diffusers, options.scheduler).from_config(engine.scheduler.config)
video = engine.generate(options.photo, options.prompt, seed=42, num_inference_steps=options.steps)
print(video.save(options.output))
