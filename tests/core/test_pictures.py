"""The size of a JPEG by its frame header, held against Pillow."""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, UnidentifiedImageError

from lorakit import pictures
from lorakit.buckets import Shape

EXIF = Image.Exif()
EXIF[pictures.ORIENTATION] = 6
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WAYS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "own tables": {"optimize": True, "quality": 30},
    "a comment": {"comment": b"\xff\xc0 is no frame" * 20},
    "a profile": {"icc_profile": ICC},
    "restarts": {"restart_marker_blocks": 2},
    "whole colours": {"subsampling": 0},
}


def jpeg(size=(40, 30), mode="RGB", **options):
    made = BytesIO()
    Image.new(mode, size).save(made, "JPEG", **options)
    return made.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("way", WAYS)
def test_the_frame_tells_the_size(way, mode):
    assert pictures.frame(jpeg(mode=mode, **WAYS[way])) == Shape(40, 30)


def test_what_may_lie_on_its_side_is_left_to_pillow(tmp_path):
    file = tmp_path / "sideways.jpg"
    file.write_bytes(jpeg(exif=EXIF))
    assert pictures.frame(file.read_bytes()) is None
    assert pictures.size(file, []) == Shape(30, 40)


def test_what_ends_before_its_pixels_is_unreadable(tmp_path):
    file = tmp_path / "short.jpg"
    file.write_bytes(jpeg()[:200])
    unreadable = []
    assert pictures.size(file, unreadable) is None
    assert "short.jpg" in unreadable[0]


def test_what_is_too_large_to_open_is_unreadable(tmp_path):
    whole = bytearray(jpeg() + bytes(pictures.HEAD))
    place = whole.index(b"\xff\xc0") + 5
    whole[place : place + 4] = b"\xff\xff\xff\xff"
    file = tmp_path / "huge.jpg"
    file.write_bytes(whole)
    unreadable = []
    assert pictures.size(file, unreadable) is None
    assert "exceeds limit" in unreadable[0]


@given(st.sampled_from(list(WAYS)), st.binary(max_size=40), st.integers(2, 700), st.integers(0, 20))
def test_a_broken_header_is_never_read_in_another_way_than_pillow_reads_it(way, noise, place, dropped):
    whole = jpeg(**WAYS[way])
    broken = whole[:place] + noise + whole[place + dropped :]
    found = pictures.frame(broken)
    with suppress(UnidentifiedImageError, OSError, Image.DecompressionBombError), Image.open(BytesIO(broken)) as image:
        assert found in (None, Shape(*image.size))
