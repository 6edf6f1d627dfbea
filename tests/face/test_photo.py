"""Photographs of every kind become RGB, and what is none is refused in one line."""

import io
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from support.people import bomb, png

from consisid.engine.errors import InputError
from consisid.engine.face import photo
from consisid.engine.face.photo import load_photo


class PosixBytes:
    """A path in bytes, as os.PathLike allows."""

    def __fspath__(self):
        return b"me.png"


def gradient(height=80, width=120):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack((x * 2, y * 3, 255 - x), -1).clip(0, 255).astype(np.uint8)


def test_path_image_and_array_agree(tmp_path):
    pixels = gradient()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels, pixels / 255.0):
        result = load_photo(source)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    pixels = gradient()
    turns = [0, 0, 2, 2, 1, 1, 3, 3][orientation - 1]  # how the file stores it: quarter turns, then a mirror
    stored_pixels = np.rot90(pixels, turns)
    if orientation in (2, 4, 5, 7):
        stored_pixels = stored_pixels[:, ::-1]
    if orientation in (5, 7):
        stored_pixels = stored_pixels[::-1, ::-1]
    stored = Image.fromarray(np.ascontiguousarray(stored_pixels))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_photo(tmp_path / "a.png"), pixels)


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.concatenate((gradient(), np.full((80, 120, 1), 255, np.uint8)), -1)
    rgba[:40, :, 3] = 0
    rgba[40:50, :, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", rgba):
        result = load_photo(source)
        assert (result[:40] == 255).all()
        np.testing.assert_array_equal(result[50:], rgba[50:, :, :3])
        expected = rgba[40:50, :, :3] * (128 / 255) + 255 * (127 / 255)
        np.testing.assert_allclose(result[40:50], expected, atol=0.5001)


def test_palette_with_transparency(tmp_path):
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1)), "P")
    image.putpalette([v for i in range(256) for v in (i, i, i)])
    image.save(tmp_path / "a.png", transparency=5)
    result = load_photo(tmp_path / "a.png")
    assert (result[:, 5] == 255).all()
    assert (result[:, 6] == 6).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.repeat(np.round(values / 257.0).astype(np.uint8)[..., None], 3, -1)
    np.testing.assert_array_equal(load_photo(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(load_photo(values), expected)
    np.testing.assert_array_equal(load_photo(Image.fromarray(values.astype(np.int32))), expected)


def test_grey_bilevel_and_cmyk(tmp_path):
    pixels = gradient()
    grey = Image.fromarray(pixels).convert("L")
    np.testing.assert_array_equal(load_photo(grey)[..., 1], np.asarray(grey))
    assert set(np.unique(load_photo(grey.convert("1")))) == {0, 255}
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    difference = np.abs(load_photo(tmp_path / "a.jpg").astype(int) - pixels)
    assert difference.mean() < 6  # JPEG in CMYK, colours subsampled; inverted colours would be about 100


def test_long_edge():
    assert load_photo(gradient(500, 2000)).shape == (256, 1024, 3)
    assert load_photo(gradient(1501, 1000)).shape == (1024, 682, 3)  # both sides rounded down, as the reference
    assert load_photo(gradient(1024, 600)).shape == (1024, 600, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"this is text", "not an image"),
        (bomb(), "megapixels"),
        (lambda: png(np.zeros((10000, 10000), np.uint8)), "megapixels"),
        (png(gradient(200, 200))[:300], "damaged"),
        (png(gradient(200, 20)), "too small"),
        (png(gradient(4000, 100)), "too small or too narrow"),
    ],
)  # fmt: skip
def test_refused_files(tmp_path, content, words):
    path = tmp_path / "me.png"
    if content is not None:
        path.write_bytes(content() if callable(content) else content)
    with pytest.raises(InputError, match=words) as caught:
        load_photo(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


def test_a_folder(tmp_path):
    with pytest.raises(InputError, match="folder"):
        load_photo(tmp_path)


def test_an_address(monkeypatch):
    """In any case of its letters; tests/face/test_download.py has what is behind it."""
    monkeypatch.setattr(photo, "download", {"HTTPS://example.org/me.png": png(gradient())}.__getitem__)
    np.testing.assert_array_equal(load_photo("HTTPS://example.org/me.png"), gradient())


def test_bytes_open_files_and_tensors(tmp_path):
    """As web services have them. A file is read from its beginning, wherever it stands, as Pillow reads one."""
    pixels = gradient()
    content, path = png(pixels), tmp_path / "me.png"
    path.write_bytes(content)
    spooled = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    spooled.write(content)
    at_the_end = io.BytesIO()
    Image.fromarray(pixels).save(at_the_end, "PNG")
    first = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    grey = torch.from_numpy(pixels[..., 0].copy())
    with path.open("rb") as opened:
        for source in (
            content, bytearray(content), memoryview(content), io.BytesIO(content), at_the_end, opened, spooled,
            first, first[None], first.permute(1, 2, 0), first / 255, (first / 255).double().requires_grad_(),
        ):  # fmt: skip
            np.testing.assert_array_equal(load_photo(source), pixels)
    for tensor in (grey, grey[None], grey[..., None]):
        np.testing.assert_array_equal(load_photo(tensor), pixels[..., :1].repeat(3, 2))
    assert np.abs(load_photo((first / 255).bfloat16()).astype(int) - pixels).max() <= 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"", "the bytes: is empty"),
        (b"text", "the bytes: is not an image"),
        (io.StringIO("text"), "the open file: gives str instead of bytes; open it in binary mode"),
        (SimpleNamespace(read=lambda size: None, name="up.png"), "up.png: gives NoneType"),
        (SimpleNamespace(read=lambda: b""), "the open file: cannot be read"),
        (torch.zeros(2, 64, 64), "the tensor: has the shape"),
        (torch.zeros(3, 64, 64, device="meta"), "the tensor: cannot be read"),
        (torch.zeros(3, 64, 64) - 1, "the tensor: has values from -1"),
        (torch.zeros(3, 64, 64, dtype=torch.complex64), "the tensor: holds values of complex64"),
        (object(), "A photo is a path, an address, bytes, an open file, a PIL image, an array or a tensor, not object"),
        ("me\0.png", "no such file|cannot be read"),
        ("~nobody-of-that-name/me.png", "cannot be read|no such file"),
        ("a" * 300, "no such file|cannot be read"),
        (PosixBytes(), "not PosixBytes"),
    ],
)
def test_refused_sources(source, words):
    with pytest.raises(InputError, match=words) as caught:
        load_photo(source)
    assert "\n" not in str(caught.value)


def test_a_closed_file(tmp_path):
    (tmp_path / "me.png").write_bytes(png(gradient()))
    with (tmp_path / "me.png").open("rb") as file:
        pass
    with pytest.raises(InputError, match=r"me\.png: cannot be read \(I/O operation on closed file"):
        load_photo(file)
    with Image.open(tmp_path / "me.png") as image:
        pass
    with pytest.raises(InputError, match="the image: is damaged"):
        load_photo(image)
    with pytest.raises(InputError, match=r"the image: is empty \(0 x 5 pixels\)"):
        load_photo(Image.new("RGB", (0, 5)))


MODES = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "La",
    "PA",
    "RGBX",
    "RGBa",
    "I;16",
)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow(mode):
    """A picture in another mode is the same picture, as far as the mode holds it."""
    pixels = gradient()
    source = Image.fromarray(pixels)
    if mode in ("La", "RGBa", "PA"):
        source = source.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}[mode])
    elif mode == "I;16":
        source = Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257)
    elif mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        source = ImageCms.profileToProfile(source, *profiles, outputMode="LAB")
    image = source if source.mode == mode else source.convert(mode)
    assert image.mode == mode
    found = load_photo(image)
    assert (found.dtype, found.shape) == (np.uint8, pixels.shape)
    grey = mode in ("1", "L", "I", "F", "LA", "La", "I;16")
    expected = np.asarray(Image.fromarray(pixels).convert("L"))[..., None] if grey else pixels
    # Dithering and a web palette keep the mean; the others keep every pixel.
    if mode not in ("1", "P", "PA"):
        assert np.abs(found.astype(float) - expected).mean() < 3
    assert abs(found.mean() - expected.mean()) < 12


def test_damaged_exif_is_no_reason_to_refuse(tmp_path, monkeypatch):
    (tmp_path / "me.png").write_bytes(png(gradient()))

    def broken(self):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    np.testing.assert_array_equal(load_photo(tmp_path / "me.png"), gradient())


def test_nothing_starts_another_program(tmp_path, monkeypatch):
    """EPS is drawn by Ghostscript; neither a file nor an image that was opened by somebody else gets there."""
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("started a program"))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("started Ghostscript"))
    path = tmp_path / "me.jpg"
    Image.fromarray(gradient()).save(path, "EPS")
    with pytest.raises(InputError, match=r"me\.jpg: is not an image that can be read"):
        load_photo(path)
    with Image.open(path) as image, pytest.raises(InputError, match="the image: is a picture in EPS; save it as JPEG"):
        load_photo(image)


@pytest.mark.parametrize("kind", ["RGBA", "I;16", pytest.param("P", marks=pytest.mark.full)])
def test_a_large_photo_is_decoded_in_bounded_memory(tmp_path, kind):
    """A process of its own: its peak is 5 bytes per pixel for the file's and ours, one strip, and the libraries."""
    side = 8000
    Image.new(kind, (side, side)).save(tmp_path / "me.png")
    script = f"""if True:
        import resource
        from consisid.engine.face.photo import load_photo
        import numpy, PIL.PngImagePlugin
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert load_photo({str(tmp_path / "me.png")!r}).shape == (1024, 1024, 3)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 < side * side * (4 + 3) + (250 << 20)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 64, 64), np.uint8), "channels last"),
        (np.zeros((2, 64, 64, 3), np.uint8), "channels last"),
        (np.zeros((0, 64, 3), np.uint8), "channels last"),
        (np.full((64, 64, 3), -0.5), "from -0.5"),
        (np.full((64, 64, 3), np.nan), "nan"),
        (np.full((64, 64, 3), 70000), "70000"),
        (np.array(None), "shape"),
        (np.full((64, 64, 3), None), "holds values of object"),
        (np.zeros((64, 64, 3), "datetime64[s]"), "holds values of datetime64"),
        (np.zeros((64, 64, 3), complex), "holds values of complex128"),
        (np.zeros((64, 64), "U3"), "holds values of"),
        (np.full((64, 64), np.inf), "to inf"),
    ],
)
def test_refused_arrays(array, words):
    with pytest.raises(InputError, match=words):
        load_photo(array)


def test_what_is_more_than_an_array():
    """np.matrix multiplies matrices, and with a third axis corrupts memory."""
    pixels = gradient()[..., 0]
    expected = pixels[..., None].repeat(3, 2)
    masked = np.ma.MaskedArray(gradient(), mask=np.zeros(gradient().shape, bool))
    np.testing.assert_array_equal(load_photo(np.matrix(pixels)), expected)
    np.testing.assert_array_equal(load_photo(np.matrix(pixels / 255)), expected)
    np.testing.assert_array_equal(load_photo(masked), gradient())
    masked.mask[:40] = True
    assert (load_photo(masked)[:40] == 0).all()


def test_what_may_not_be_read(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "me.png").write_bytes(png(gradient()))
    monkeypatch.setattr("pathlib.Path.read_bytes", refused)  # root may read everything
    with pytest.raises(InputError, match=r"me\.png: cannot be read \(Permission denied\); check its permissions"):
        load_photo(tmp_path / "me.png")


def test_a_file_that_is_far_too_large_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "film.mp4").write_bytes(b"x" * 200)
    monkeypatch.setattr(photo, "MAX_FILE", 100)
    with pytest.raises(InputError, match=r"film\.mp4: more than"):
        load_photo(tmp_path / "film.mp4")
