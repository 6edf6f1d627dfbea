"""Photos from clients: uploaded, written into the request, or fetched from a host that was allowed."""

import base64
import binascii
import io
import warnings
from fractions import Fraction
from threading import Semaphore
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from ..errors import InputError
from ..face.download import download
from ..face.photo import load_photo
from ..face.pixels import FORMATS
from .forms import Form
from .refusals import Refusal, refusal_of
from .settings import Limits
from .wanted import unbracketed

AT_ONCE = 2  # photos that are decoded; each takes its pixels in memory
MOST_FRAMES = 2000  # of a video that shows a person


class Photos:
    """Checks what clients send."""

    def __init__(self, limits: Limits):
        self.limits, self._decoding = limits, Semaphore(AT_ONCE)

    def check(self, content: bytes, field: str) -> bytes:
        """A photo that the engine can read; raises Refusal for anything else."""
        with self._decoding:
            try:
                self._check_pixels(content)
                load_photo(content)
            except InputError as error:
                raise refusal_of(error, field) from None
        return content

    def _check_pixels(self, content: bytes) -> None:
        """By what its header says, before it is decoded."""
        Image.init()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(content), formats=[each for each in FORMATS if each in Image.OPEN]) as image:
                    width, height = image.size
        except Exception:  # load_photo says why
            return
        if width * height > self.limits.pixels:
            raise InputError(
                f"The photo: {width} x {height} is more than {self.limits.pixels / 1e6:g} megapixels; reduce it first."
            )

    def fetch(self, address: str, field: str) -> bytes:
        """The photo at a data: address, or at one of an allowed host; raises Refusal."""
        if address[:5].lower() == "data:":
            return self.check(from_data(address, field), field)
        allowed = self.limits.hosts
        host = _host(address)
        if host not in allowed:
            raise Refusal(
                400, "address", "This server fetches no photos from there; upload the photo itself.", field
            )  # fmt: skip
        try:
            content = download(address, max_bytes=self.limits.body, hosts=allowed.__contains__)
        except InputError as error:
            raise refusal_of(error, field) from None
        return self.check(content, field)

    def of_person(self, content: bytes, field: str) -> list[bytes]:
        """A photo, or some frames of a video, each as the bytes of a picture."""
        if content[4:8] != b"ftyp" or content[8:12] in (b"avif", b"avis", b"heic", b"mif1"):
            return [self.check(content, field)]
        with self._decoding:
            return frames_of(content, self.limits, field)


def character_of(form: Form, photos: Photos) -> tuple[str, str, list[bytes]]:
    """The name, who is meant in a photo, and the photos; raises Refusal for a form that does not say them."""
    values, most = unbracketed(form.values), photos.limits.photos
    name, face = values.pop("name", None), values.pop("face", "largest")
    for odd in (*values, *(name for name, _ in form.files if name not in ("video", "image", "image[]"))):
        raise Refusal(400, "unknown_field", "The fields are name, face, video and image.", odd[:100])
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise Refusal(400, "invalid_value", "Give a name of 1 to 200 characters.", "name")
    if not isinstance(face, str) or len(face) > 100:
        raise Refusal(400, "invalid_value", "face is largest, center, a number or a box.", "face")
    if not 0 < len(form.files) <= most:
        raise Refusal(400, "invalid_value", f"Give 1 to {most} photos as image, or a video.", "video")
    return name, face, [photo for name, content in form.files for photo in photos.of_person(content, name)]


def _host(address: str) -> str:
    """Of an http(s) address without a user in it; empty for another."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return (parts.hostname or "") if parts.scheme in ("http", "https") and "@" not in parts.netloc else ""


def from_data(address: str, field: str) -> bytes:
    """The bytes in a data: address; raises Refusal for one that is not in base64."""
    head, comma, content = address.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise binascii.Error
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, "invalid_value", "A data: address has to be in base64.", field) from None


def frames_of(content: bytes, limits: Limits, field: str) -> list[bytes]:
    """As many frames of an mp4 as a character may have photos, evenly spread, each as a PNG."""
    import av

    found: list[bytes] = []
    try:
        with av.open(io.BytesIO(content), format="mp4") as file:
            stream: Any = file.streams.video[0]
            if stream.width * stream.height > limits.pixels:
                raise Refusal(400, "invalid_value", "The frames of this video are too large.", field)
            rate = stream.average_rate or Fraction(25)
            count = stream.frames or int((stream.duration or 0) * stream.time_base * rate)
            every = max(1, min(count, MOST_FRAMES) // limits.photos)
            for number, frame in enumerate(file.decode(stream)):
                if number >= MOST_FRAMES or len(found) >= limits.photos:
                    break
                if number % every == 0:
                    picture = io.BytesIO()
                    frame.to_image().save(picture, "PNG", compress_level=1)
                    found.append(picture.getvalue())
    except Refusal:
        raise
    except Exception as error:  # a damaged file can fail anywhere in ffmpeg
        raise Refusal(400, "invalid_value", f"The video cannot be read ({type(error).__name__}).", field) from None
    if not found:
        raise Refusal(400, "invalid_value", "The video has no frames.", field)
    return found
