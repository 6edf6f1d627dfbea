# ruff: noqa: E402 - the shim comes first: facexlib and diffusers look for torchvision when they are imported
"""Print the table of docs/identity.md: photographs that are not well-formed, in diffusers and here.

.venv-parity/bin/python tests/face_parity/table.py
"""

import contextlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shim

shim.install()

import cv2
import images
import numpy as np
from PIL import Image

with contextlib.redirect_stdout(sys.stderr):  # some of these packages advertise others when they are imported
    from reference import Reference

from support.eager_face_models import EagerFaceModels

from consisid.engine.checkpoint.tiny_faces.write import write_face_models
from consisid.engine.errors import ConsisIDError
from consisid.engine.face.analysis import analyse, features
from consisid.engine.face.photo import load_photo

WHOLE = images.photographs()["whole"]


def cut_out() -> Image.Image:
    """Transparent behind the person; the colours there are still in the file."""
    alpha = np.zeros(WHOLE.shape[:2], np.uint8)
    cv2.ellipse(alpha, (227, 110), (95, 110), 0, 0, 360, 255, -1)
    alpha[200:] = 255
    return Image.fromarray(np.dstack((WHOLE, alpha)))


def rotated_file(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(WHOLE)).save(path, exif=exif)
    return path


def saved(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


def two_people() -> images.Image:
    """A large face on the left, a smaller one in the middle."""
    small = cv2.resize(WHOLE, (340, 340), interpolation=cv2.INTER_AREA)[:300]
    return np.concatenate((WHOLE[:300, 60:400], small, small[:, :120]), axis=1)


def cases(folder: Path) -> list[tuple[str, Any, str]]:
    grey = cv2.cvtColor(WHOLE, cv2.COLOR_RGB2GRAY)
    upright = Image.fromarray(WHOLE)
    return [
        ("EXIF rotation (6)", rotated_file(folder / "exif.png"), "both apply it"),
        (
            "CMYK JPEG",
            saved(upright.convert("CMYK"), folder / "cmyk.jpg"),
            "both convert with Pillow, without a profile",
        ),
        (
            "PNG with transparency",
            saved(cut_out(), folder / "alpha.png"),
            "the reference drops the alpha and shows what was cut away; here it is white, as the crop's background is",
        ),
        (
            "16-bit grey PNG",
            saved(Image.fromarray(grey.astype(np.uint16) * 257), folder / "deep.png"),
            "the reference clips: 89 % of the pixels become white; here 65535 becomes 255. TINY sees no face in grey",
        ),
        ("8-bit grey PNG", saved(Image.fromarray(grey), folder / "grey.png"), "TINY's detectors see colour only"),
        ("16-bit array, colour", WHOLE.astype(np.uint16) * 257, "Pillow takes no such array; here it is scaled"),
        ("64 x 64", cv2.resize(WHOLE, (64, 64), interpolation=cv2.INTER_AREA), "the face is 18 pixels wide"),
        ("128 x 128", cv2.resize(WHOLE, (128, 128), interpolation=cv2.INTER_AREA), "the face is 36 pixels wide"),
        ("20 x 20", cv2.resize(WHOLE, (20, 20), interpolation=cv2.INTER_AREA), "refused below 40 pixels a side"),
        ("8000 x 8000", cv2.resize(WHOLE, (8000, 8000), interpolation=cv2.INTER_CUBIC), "both reduce to 1024 first"),
        ("8000 x 60", np.ascontiguousarray(cv2.resize(WHOLE, (8000, 60))), "7 rows remain at 1024: too narrow"),
        (
            "two faces",
            two_people(),
            "the reference embeds the largest and crops the most central: two people in one identity. Here both are of "
            "the largest, with a warning; face='reference' mixes as it does",
        ),
        ("face at the border", np.ascontiguousarray(WHOLE[:, 175:]), "grey where the crop leaves the photo, in both"),
        ("no face", np.full((300, 400, 3), (60, 120, 180), np.uint8), "one line instead of an IndexError"),
    ]


def said(call: Callable[[], Any]) -> tuple[Any, str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call()
        except ConsisIDError as error:
            return None, f"{type(error).__name__}: {error}"
        except Exception as error:
            return None, f"{type(error).__name__}: {str(error)[:90]}"
    told = [str(w.message) for w in caught if issubclass(w.category, UserWarning) and "face" in str(w.message).lower()]
    return result, "a face" + (f", warning: {told[0]}" if told else "")


def main() -> None:
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_face_models(folder, seed=0)
        reference, models = Reference(folder), EagerFaceModels(folder / "face_encoder")

        def ours(source: Any) -> Any:
            analysis = analyse(load_photo(source), models)
            return analysis.crop, features(analysis, models)[0]

        def theirs(source: Any) -> Any:
            result = reference(str(source) if isinstance(source, Path) else source)
            return np.asarray(result.image), result.id_cond

        print("| photograph | diffusers | here | compared | why |\n|---|---|---|---|---|")
        for title, source, why in cases(folder):
            (a, first), (b, second) = said(lambda s=source: theirs(s)), said(lambda s=source: ours(s))
            compared = "-"
            if a and b:
                crop = np.abs(a[0].astype(int) - b[0].astype(int)).max()
                compared = f"crop {crop} grey levels, id_cond {(a[1] - b[1]).abs().max():.0e}"
            second = second.replace(f"{folder}/", "")
            print(f"| {title} | {first} | {second} | {compared} | {why} |")


if __name__ == "__main__":
    main()
