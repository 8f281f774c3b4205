"""Any picture file becomes upright 8-bit RGB in its bucket's shape, deliberately."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit.buckets import Shape, fit
from lorakit.dataset import Framed, Sizing, index
from lorakit.engine.pixels import load, to_image, to_rgb, to_tensor
from lorakit.errors import DataError
from lorakit.pictures import ORIENTATION
from lorakit.planned import PlannedData

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def framed(path, width=32, height=32, resolution=32) -> Framed:
    size = Shape(width, height)
    return Framed(path, size, fit(size, resolution, 16))


def colour(image: Image.Image, at=(0, 0)) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel(at)


# -- modes -------------------------------------------------------------------------------------------------------


def test_transparency_lies_over_white():
    assert colour(to_rgb(Image.new("RGBA", (2, 2), (*RED, 0)))) == WHITE
    assert colour(to_rgb(Image.new("RGBA", (2, 2), (*RED, 255)))) == RED
    assert colour(to_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))) == (127, 127, 127)


def test_grey_with_transparency_lies_over_white():
    assert colour(to_rgb(Image.new("LA", (2, 2), (10, 0)))) == WHITE
    assert colour(to_rgb(Image.new("LA", (2, 2), (10, 255)))) == (10, 10, 10)


def test_a_palette_is_looked_up_and_its_clear_colour_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    assert [colour(to_rgb(image), (x, 0)) for x in (0, 1)] == [RED, BLUE]
    image.save(tmp_path / "p.png", transparency=1)
    with Image.open(tmp_path / "p.png") as opened:
        assert opened.mode == "P"
        assert [colour(to_rgb(opened), (x, 0)) for x in (0, 1)] == [RED, WHITE]


def test_a_clear_colour_of_an_rgb_png_is_white(tmp_path):
    Image.new("RGB", (2, 2), RED).save(tmp_path / "x.png", transparency=RED)
    with Image.open(tmp_path / "x.png") as opened:
        assert colour(to_rgb(opened)) == WHITE


def test_grey_and_black_and_white():
    assert colour(to_rgb(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert colour(to_rgb(Image.new("1", (2, 2), 1))) == WHITE


def test_cmyk(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    with Image.open(tmp_path / "x.jpg") as opened:
        assert opened.mode == "CMYK"
        assert np.abs(np.subtract(colour(to_rgb(opened)), RED)).max() < 8


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for name in ("x.png", "x.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            assert opened.mode.startswith("I")
            rgb = to_rgb(opened)
        assert [colour(rgb, (x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


# -- loading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
def test_every_format_is_read(tmp_path, suffix):
    Image.new("RGB", (32, 32), RED).save(tmp_path / f"x.{suffix}")
    pixels = load(framed(tmp_path / f"x.{suffix}"))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32
    assert torch.allclose(pixels, torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 32, 32), atol=0.03)


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, "top left"), (3, "bottom right"), (6, "top right"), (8, "bottom left")]
)
def test_pictures_are_stood_upright(tmp_path, orientation, corner):
    """A red corner, stored top left of a wide picture, is where the camera's orientation says."""
    image = Image.new("RGB", (64, 32), BLUE)
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    (tmp_path / "x.txt").write_text("x", encoding="utf-8")
    (one,) = index([PlannedData(folder=str(tmp_path), resolution=64, trigger="")], Sizing(16)).samples
    assert one.size == (Shape(32, 64) if orientation in (6, 8) else Shape(64, 32))
    pixels = load(one.framed)
    assert pixels.shape[1:] == (one.fit.shape.height, one.fit.shape.width)
    row, column = (-2 if word in ("bottom", "right") else 1 for word in corner.split())
    assert pixels[0, row, column] > 0.8
    assert [float(pixels[0, y, x]) > 0.8 for y in (1, -2) for x in (1, -2)].count(True) == 1


def test_the_middle_is_kept_when_sides_are_cut(tmp_path):
    image = Image.new("RGB", (48, 32), BLUE)
    image.paste(RED, (8, 0, 40, 32))
    image.save(tmp_path / "x.png")
    one = framed(tmp_path / "x.png", 48, 32)
    assert str(one.fit.shape) == "32x32"
    pixels = load(one)
    assert bool((pixels[0] > 0.5).all())


def test_a_cut_off_file_is_named(tmp_path):
    path = tmp_path / "x.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"x\.png cannot be decoded.*Replace or remove"):
        load(framed(path, 64, 64))


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture at all")
    with pytest.raises(DataError, match=r"x\.png cannot be decoded"):
        load(framed(tmp_path / "x.png"))


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"x\.png cannot be decoded.*decompression bomb"):
        load(framed(tmp_path / "x.png", 64, 64))


def test_tensor_and_picture_are_each_others_reverse():
    array = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    image = Image.fromarray(array)
    assert np.array_equal(np.asarray(to_image(to_tensor(image))), array)
    assert np.array_equal(np.asarray(to_image(to_tensor(image) * 3))[0, 0], (0, 0, 0))  # clamped, not wrapped
