"""One video without a LoRA and one with it. The LoRA is added to the weights before the video; nothing is rebuilt.

python docs/examples/lora.py engines/preview me.jpg --lora snow.safetensors --weight 0.8 --output videos
"""

import argparse
from pathlib import Path

from consisid.engine import ConsisID

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument("engine", help="engine folder made by consisid-build")
p.add_argument("photo", help="photo of the person")
p.add_argument("--lora", required=True, help="a .safetensors file, a folder or a hub id")
p.add_argument("--weight", type=float, default=1.0)
p.add_argument("--prompt", default="A person walks through fresh snow, breath visible in the cold air.")
p.add_argument("--steps", type=int, default=50)
p.add_argument("--output", type=Path, default=Path("videos"), help="folder")
options = p.parse_args()

engine = ConsisID.open(options.engine)
person = engine.identify(options.photo)
settings = {"seed": 42, "num_inference_steps": options.steps}
options.output.mkdir(parents=True, exist_ok=True)

engine.load_lora_weights(options.lora, adapter_name="style")
engine.set_adapters(["style"], [options.weight])
print(engine.generate(person, options.prompt, **settings).save(options.output / "with.mp4"))

engine.unload_lora_weights()
print(engine.generate(person, options.prompt, **settings).save(options.output / "without.mp4"))
