"""`consisid-bench ENGINE --identity --image PHOTO --video MP4`: is it still the same person?"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from consisid.engine import ConsisID
from consisid.engine.errors import FaceError
from consisid.engine.face.film import read_video
from consisid.engine.face.similarity import similarity

from ..core.tables import write_files


def measure_identity(engine: Path, image: Path, video: Path, output: Path) -> tuple[dict[str, Any], str]:
    """Write identity.json into `output`; return what it holds and a line about it."""
    opened = ConsisID.open(engine)
    result = similarity(opened.faces, opened.identify(image), read_video(video))
    if result.mean is None:
        raise FaceError(
            f"{video}: no face was found in any of {len(result.frames)} frames; give a video that shows one."
        )
    values = {"command": " ".join(sys.argv), "image": str(image), "video": str(video), **asdict(result)}
    write_files(output, {"identity.json": json.dumps(values, indent=1) + "\n"})
    return values, (
        f"{video}: ArcFace cosine {result.mean:.3f} on average, {result.lowest:.3f} at the lowest; no face in "
        f"{result.without_face} of {len(result.frames)} frames."
    )
