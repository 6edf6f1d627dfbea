"""A budget of device memory: what is planned, then what was used.

python docs/examples/memory_budget.py engines/preview me.jpg --memory 8GiB --output video.mp4
"""

import argparse

from consisid.engine import ConsisID

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument("engine", help="engine folder made by consisid-build")
p.add_argument("photo", help="photo of the person")
p.add_argument("--memory", default="8GiB", help='bytes, "8GiB", or "auto" for what is free')
p.add_argument("--prompt", default="A person walks through fresh snow, breath visible in the cold air.")
p.add_argument("--steps", type=int, default=50)
p.add_argument("--output", default="video.mp4")
options = p.parse_args()

# A budget that is too small is refused here, before anything is loaded, with the smallest that would do.
engine = ConsisID.open(options.engine, memory=options.memory)
print(engine.plan(options.memory))
# on_oom: where another program takes memory meanwhile, the run goes on with the next smaller plan.
video = engine.generate(options.photo, options.prompt, seed=42, num_inference_steps=options.steps, on_oom="replan")
print(video.save(options.output))
stats = video.stats
print(f"predicted {stats.predicted_bytes / 2**30:.2f} GiB, seen {stats.peak_bytes / 2**30:.2f} GiB; {stats.modes}")
