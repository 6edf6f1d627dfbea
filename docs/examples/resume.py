"""A run that goes on where it was killed: start it, kill it, start it again.

python docs/examples/resume.py engines/preview me.jpg --output video.mp4
"""

import argparse
from pathlib import Path

from consisid.engine import ConsisID

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument("engine", help="engine folder made by consisid-build")
p.add_argument("photo", help="photo of the person")
p.add_argument("--prompt", default="A person walks through fresh snow, breath visible in the cold air.")
p.add_argument("--steps", type=int, default=50)
p.add_argument("--output", type=Path, default=Path("video.mp4"))
p.add_argument("--die-after", type=int, help="end the process after so many steps, to try it")
options = p.parse_args()

kept = options.output.with_suffix(".safetensors")
engine = ConsisID.open(options.engine)


def on_step(pipeline, step, timestep, tensors):
    print(f"step {step + 1} of {options.steps}", flush=True)
    if step + 1 == options.die_after:
        raise SystemExit(f"killed; {kept} has the finished steps")
    return {}


# Everything that decides what the video is has to be the same again, the seed too; another request is refused.
video = engine.generate(
    options.photo, options.prompt, seed=42, num_inference_steps=options.steps, callback_on_step_end=on_step,
    checkpoint=kept, checkpoint_every=1,
)  # fmt: skip
print(video.save(options.output))  # a finished run has removed its checkpoint
