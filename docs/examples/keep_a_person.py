"""Keep a person: the first run saves what the model knows of a face, later runs need no photo and no face models.

python docs/examples/keep_a_person.py engines/preview me.jpg --identity me.safetensors --output first.mp4
python docs/examples/keep_a_person.py engines/preview me.jpg --identity me.safetensors --output second.mp4
"""

import argparse
from pathlib import Path

from consisid.engine import ConsisID, Identity

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument("engine", help="engine folder made by consisid-build")
p.add_argument("photo", help="photo of the person; read only where --identity does not exist yet")
p.add_argument("--identity", type=Path, default=Path("me.safetensors"), help="where the person is kept")
p.add_argument("--prompt", default="A person walks through fresh snow, breath visible in the cold air.")
p.add_argument("--steps", type=int, default=50)
p.add_argument("--output", default="video.mp4")
options = p.parse_args()

engine = ConsisID.open(options.engine)
if options.identity.exists():
    person = Identity.load(options.identity)
    print(f"{options.identity}: loaded")
else:
    person = engine.identify(options.photo)
    person.preview().save(options.identity.with_suffix(".png"))  # what the model will see
    person.save(options.identity)
    print(f"{options.identity}: saved")
print(engine.generate(person, options.prompt, seed=42, num_inference_steps=options.steps).save(options.output))
