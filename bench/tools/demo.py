"""`make demo`: TINY or TINY_1_5, from an empty folder to an mp4 of a real photograph, on a CPU."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from consisid.engine import ConsisID
from consisid.engine.util.cli import run
from consisid.engine.variants import VARIANTS
from consisid.export import build


def demo(folder: Path, variant: str) -> None:
    """Write demo.mp4, the photograph that it was made from (the astronaut Eileen Collins; NASA, public domain) and what
    the model sees of her."""
    from PIL import Image
    from skimage.data import astronaut

    folder.mkdir(parents=True, exist_ok=True)
    photo, output = folder / "photo.png", folder / "demo.mp4"
    Image.fromarray(astronaut()).save(photo)
    with tempfile.TemporaryDirectory() as scratch:
        build(variant, Path(scratch) / "engine", backend="eager")
        engine = ConsisID.open(Path(scratch) / "engine")
        person = engine.identify(photo)
        person.preview().save(folder / "face.png")
        video = engine.generate(person, "An astronaut smiles at the viewer, the flag behind her moving.", seed=42)
        video.save(output)
    frames, height, width, _ = video.frames.shape
    print(f"{output}: {width}x{height}, {frames} frames. The model has random weights: expect noise, not a face.")
    for name, seconds in video.stats.seconds.items():
        print(f"  {name:<9} {seconds:6.2f} s")
    print(video.stats.summary())


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser("make demo", description=__doc__)
    p.add_argument("--output", type=Path, default=Path("out"))
    p.add_argument("--variant", choices=[v.name for v in VARIANTS.values() if v.seeded], default="tiny")
    options = p.parse_args(arguments)
    return run("demo", lambda: demo(options.output, options.variant))


if __name__ == "__main__":
    sys.exit(main())
