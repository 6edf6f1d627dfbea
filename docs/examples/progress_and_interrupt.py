"""A callback that says how far the loop is, and ends it when a time is up: the video is then of the steps made so far.

python docs/examples/progress_and_interrupt.py engines/preview me.jpg --seconds 60 --output video.mp4
"""

import argparse
import time

from consisid.engine import ConsisID

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument("engine", help="engine folder made by consisid-build")
p.add_argument("photo", help="photo of the person")
p.add_argument("--seconds", type=float, default=60.0, help="when the loop ends")
p.add_argument("--prompt", default="A person walks through fresh snow, breath visible in the cold air.")
p.add_argument("--steps", type=int, default=50)
p.add_argument("--output", default="video.mp4")
options = p.parse_args()

engine = ConsisID.open(options.engine)
began = time.monotonic()


def on_step(pipeline, step, timestep, tensors):
    """Called after each step; returned tensors would replace those of the run."""
    print(f"step {step + 1} of {options.steps}, {time.monotonic() - began:.1f} s", flush=True)
    if time.monotonic() - began > options.seconds:
        pipeline._interrupt = True  # diffusers' name for it: the loop ends after this step
    return {}


video = engine.generate(
    options.photo, options.prompt, seed=42, num_inference_steps=options.steps, callback_on_step_end=on_step
)  # fmt: skip
print(video.save(options.output), f"{len(video.stats.steps)} steps")
