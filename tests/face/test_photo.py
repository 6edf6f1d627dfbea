"""Photographs of every kind become RGB, and what is none is refused in one line."""

import io

import numpy as np
import pytest
from conftest import bomb, png
from PIL import Image

from consisid.engine import photo
from consisid.engine.errors import InputError
from consisid.engine.photo import load_photo


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
        (png(gradient(10000, 10000)[:, :, :1].squeeze() * 0), "megapixels"),
        (png(gradient(200, 200))[:300], "damaged"),
        (png(gradient(200, 20)), "too small"),
        (png(gradient(4000, 100)), "too small or too narrow"),
    ],
)  # fmt: skip
def test_refused_files(tmp_path, content, words):
    path = tmp_path / "me.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        load_photo(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


def test_a_folder(tmp_path):
    with pytest.raises(InputError, match="folder"):
        load_photo(tmp_path)


def test_an_address_without_network(monkeypatch):
    def unreachable(*args, **kwargs):
        raise photo.urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(photo.urllib.request, "urlopen", unreachable)
    with pytest.raises(InputError, match=r"https://example\.org/me\.png.*Name or service.*give its path"):
        load_photo("https://example.org/me.png")


def test_an_address(monkeypatch):
    monkeypatch.setattr(photo.urllib.request, "urlopen", lambda *a, **k: io.BytesIO(png(gradient())))
    np.testing.assert_array_equal(load_photo("https://example.org/me.png"), gradient())
    monkeypatch.setattr(photo, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="more than"):
        load_photo("https://example.org/me.png")


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
    ],
)
def test_refused_arrays(array, words):
    with pytest.raises(InputError, match=words):
        load_photo(array)


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
