"""Which shape a picture is trained in."""

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lorakit.buckets import LONGEST, Shape, fit, shapes

MULTIPLES = st.sampled_from([8, 16, 32, 64])


@st.composite
def cases(draw, longest=None):
    """A picture that holds a patch, a resolution and a side multiple; `longest` limits its aspect ratio."""
    multiple = draw(MULTIPLES)
    width = draw(st.integers(multiple, 3000))
    low, high = (multiple, 3000) if longest is None else (math.ceil(width / longest), width * longest)
    height = draw(st.integers(max(multiple, low), max(multiple, high)))
    assume(longest is None or max(width, height) <= longest * min(width, height))
    return Shape(width, height), draw(st.integers(multiple, 1536)), multiple


@given(st.integers(8, 2048), MULTIPLES)
def test_every_bucket_is_of_whole_multiples_and_within_area_and_aspect(resolution, multiple):
    assume(resolution >= multiple)
    table = shapes(resolution, multiple)
    assert table
    for shape in table:
        assert shape.width % multiple == shape.height % multiple == 0
        assert 0 < shape.width * shape.height <= resolution**2
        assert max(shape.width, shape.height) <= LONGEST * min(shape.width, shape.height)


@given(st.integers(8, 2048), MULTIPLES)
def test_buckets_are_few(resolution, multiple):
    assert len(shapes(resolution, multiple)) <= 130


@given(cases())
def test_the_bucket_is_cut_from_inside_the_resized_picture(case):
    brought = fit(*case)
    assert brought.resized.width >= brought.shape.width
    assert brought.resized.height >= brought.shape.height
    assert 0 <= brought.left <= brought.resized.width - brought.shape.width
    assert 0 <= brought.top <= brought.resized.height - brought.shape.height
    assert 0 <= brought.cropped < 1


@given(cases())
def test_only_one_side_is_cut_and_from_the_middle(case):
    brought = fit(*case)
    spare = (brought.resized.width - brought.shape.width, brought.resized.height - brought.shape.height)
    assert min(spare) <= 1
    assert (brought.left, brought.top) == (spare[0] // 2, spare[1] // 2)


@given(cases())
def test_resizing_keeps_the_aspect_ratio_to_a_pixel(case):
    picture, brought = case[0], fit(*case)
    scale = max(brought.resized.width / picture.width, brought.resized.height / picture.height)
    assert abs(picture.width * scale - brought.resized.width) <= 1 + scale * 0.5 * picture.width / picture.height
    assert abs(picture.height * scale - brought.resized.height) <= 1 + scale * 0.5 * picture.height / picture.width


@given(cases())
def test_the_bucket_is_within_the_resolution_and_no_larger_than_the_picture(case):
    picture, resolution, multiple = case
    shape = fit(*case).shape
    assert shape.width % multiple == shape.height % multiple == 0
    assert shape.width * shape.height <= min(resolution**2, picture.width * picture.height)


@given(cases(longest=LONGEST))
@example((Shape(48, 97), 1113, 32))
@example((Shape(590, 2345), 1467, 8))
def test_nothing_is_enlarged_by_more_than_the_rounding(case):
    picture, resolution, multiple = case
    brought = fit(*case)
    side = min(resolution, math.isqrt(picture.width * picture.height))
    step = multiple * max(1, side // (16 * multiple))
    scale = max(brought.shape.width / picture.width, brought.shape.height / picture.height)
    assert min(picture.width, picture.height) * (scale - 1) < step


@pytest.mark.parametrize(
    ("picture", "shape", "resized", "corner"),
    [
        ((4000, 4000), (1024, 1024), (1024, 1024), (0, 0)),  # 1:1
        ((3000, 2000), (1216, 832), (1248, 832), (16, 0)),  # 3:2
        ((2000, 3000), (832, 1216), (832, 1248), (0, 16)),  # the same, upright
        ((1920, 1080), (1344, 768), (1365, 768), (10, 0)),  # 16:9
        ((1080, 1920), (768, 1344), (768, 1365), (0, 10)),
        ((512, 512), (512, 512), (512, 512), (0, 0)),  # smaller than the resolution: as it is
        ((520, 520), (512, 512), (512, 512), (0, 0)),
        ((16, 16), (16, 16), (16, 16), (0, 0)),  # one patch
    ],
)
def test_by_hand_at_1024(picture, shape, resized, corner):
    brought = fit(Shape(*picture), 1024, 16)
    assert (brought.shape, brought.resized) == (Shape(*shape), Shape(*resized))
    assert (brought.left, brought.top) == corner


def test_the_share_that_is_cropped():
    assert fit(Shape(3000, 2000), 1024, 16).cropped == pytest.approx(1 - 1216 / 1248)
    assert fit(Shape(4000, 4000), 1024, 16).cropped == 0


@pytest.mark.parametrize("resolution", [64, 512, 768, 1024, 1328])
def test_upright_pictures_fare_like_wide_ones(resolution):
    table = shapes(resolution, 16)
    assert {Shape(one.height, one.width) for one in table} == set(table)


@given(cases())
def test_the_bucket_is_the_nearest_of_all_and_the_largest_of_those(case):
    picture, resolution, multiple = case
    own = math.isqrt(picture.width * picture.height) // multiple * multiple
    aspect = math.log(picture.width / picture.height)
    table = shapes(max(multiple, min(resolution, own)), multiple)
    best = min(table, key=lambda one: (abs(math.log(one.width / one.height) - aspect), -one.width * one.height))
    assert fit(picture, resolution, multiple).shape == best
