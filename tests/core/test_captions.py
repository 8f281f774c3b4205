"""Captions as a family advises them."""

from pathlib import Path

import pytest

from lorakit.captions import SUBJECT, CaptionAdvice, file_of, misses

ADVICE = CaptionAdvice(
    shortest=20,
    longest=60,
    order=(("quality", ("photorealistic",)), (SUBJECT, ()), ("camera", ("shot on", "mm")), ("lighting", ("light",))),
    because="a test says so",
)


@pytest.mark.parametrize(
    "caption",
    [
        "photorealistic, maya portrait, shot on 85 mm, soft light",
        "maya portrait, soft light from a window",
        "a bench under the moon, nobody there",
    ],
)
def test_a_caption_that_misses_nothing(caption):
    assert list(misses(caption, "maya", ADVICE)) == []


def test_length_is_said_with_what_is_advised():
    assert list(misses("maya", "maya", ADVICE)) == ["4 characters, where 20 to 60 are advised"]
    assert "61 characters" in next(misses("m" * 61, "maya", ADVICE))


def test_order_is_said_as_it_is_and_as_it_should_be():
    (said,) = misses("soft light, maya portrait, photorealistic", "maya", ADVICE)
    assert said == (
        "its parts come as lighting then subject then quality, where quality, subject, camera, lighting is advised"
    )


def test_words_are_whole_words():
    assert list(misses("a lightning bolt, maya portrait", "maya", ADVICE)) == []


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.b.jpg", "a", ".a", ".a.png", "a.", "f.d/a", "f.d/.a", "f.d/a.png", "a..png"]
)
def test_the_file_beside_is_the_picture_with_another_ending(name):
    for path in (Path(name), Path("/place") / name):
        assert file_of(path, "txt") == str(path.with_suffix(".txt"))
