"""Folders to described samples."""

import shutil

import pytest
from PIL import Image

from lorakit.buckets import Shape
from lorakit.captions import with_trigger
from lorakit.dataset import Bucket, Sizing, index
from lorakit.errors import DataError
from lorakit.pictures import ORIENTATION
from lorakit.planned import PlannedData
from tests.pictures import picture


def read(*folders, trigger="sks", side_multiple=16, **given):
    data = [PlannedData(folder=str(folder), trigger=trigger, resolution=64, **given) for folder in folders]
    return index(data, Sizing(side_multiple))


def refusal(*folders, **given):
    with pytest.raises(DataError) as caught:
        read(*folders, **given)
    return str(caught.value)


# -- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".PNG"])
def test_formats(tmp_path, suffix):
    picture(tmp_path / f"a{suffix}", (80, 48))
    [sample] = read(tmp_path).samples
    assert sample.size == Shape(80, 48)
    assert sample.path == tmp_path / f"a{suffix}"


def test_what_is_no_picture_is_passed_over(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / ".hidden.png")
    (tmp_path / "notes.md").write_text("notes")
    (tmp_path / "folder.png").mkdir()
    assert [sample.path.name for sample in read(tmp_path).samples] == ["a.png"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_as_seen_after_exif_orientation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture(tmp_path / f"a{suffix}", (80, 48), exif=exif)
    [sample] = read(tmp_path).samples
    assert sample.size == (Shape(48, 80) if orientation >= 5 else Shape(80, 48))


def test_samples_are_in_order_of_name_and_read_alike_each_time(tmp_path):
    for name in ("b", "a", "10", "9"):
        picture(tmp_path / f"{name}.png")
    dataset = read(tmp_path)
    assert [sample.path.stem for sample in dataset.samples] == ["10", "9", "a", "b"]
    assert dataset == read(tmp_path)


def test_pictures_are_counted_by_bucket_with_repeats(tmp_path):
    for number, size in enumerate([(64, 64), (80, 80), (128, 32)]):
        picture(tmp_path / "3_x" / f"{number}.png", size)
    dataset = read(tmp_path)
    assert dataset.buckets() == {Bucket(Shape(64, 64)): 6, Bucket(Shape(128, 32)): 3}
    assert dataset.passes == 9


# -- repeats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "repeats"), [("40_maya", 40), ("1_x", 1), ("maya", 1), ("40", 1), ("maya_40", 1)])
def test_a_folders_name_says_its_repeats(tmp_path, name, repeats):
    picture(tmp_path / name / "a.png")
    assert [sample.repeats for sample in read(tmp_path / name).samples] == [repeats]


def test_the_parent_of_such_folders(tmp_path):
    picture(tmp_path / "40_maya" / "a.png")
    picture(tmp_path / "20_bench" / "b.png")
    picture(tmp_path / "other" / "c.png")
    (tmp_path / "5_empty").mkdir()
    dataset = read(tmp_path)
    assert [(one.folder, one.repeats) for one in dataset.samples] == [("20_bench", 20), ("40_maya", 40)]
    assert dataset.passes == 60


def test_repeats_that_are_asked_for_count_above_the_name(tmp_path):
    picture(tmp_path / "40_maya" / "a.png")
    assert read(tmp_path, repeats=3).passes == 3
    assert read(tmp_path / "40_maya", repeats=3).passes == 3


# -- captions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "trigger", "seen"),
    [
        ("a cat", "sks", "sks, a cat"),
        ("[trigger] on a bench", "sks", "sks on a bench"),
        ("[trigger] and [trigger]", "sks", "sks and sks"),
        ("a photo of sks", "sks", "a photo of sks"),
        ("a photo of SKS.", "sks", "a photo of SKS."),
        ("risks are taken", "sks", "sks, risks are taken"),
        ("a cat", "", "a cat"),
        ("", "sks", "sks"),
        ("a c++ book", "c++", "a c++ book"),
    ],
)
def test_with_trigger(caption, trigger, seen):
    assert with_trigger(caption, trigger) == seen
    assert with_trigger(seen, trigger) == seen


def test_a_sidecar_caption_is_read_as_one_line(tmp_path):
    picture(tmp_path / "a.png", caption="\ufeffa cat\r\n  on a bench, Zoë \n")
    assert [sample.caption for sample in read(tmp_path).samples] == ["sks, a cat on a bench, Zoë"]


def test_another_extension(tmp_path):
    picture(tmp_path / "a.png", caption="not this")
    (tmp_path / "a.caption").write_text("this")
    assert [sample.caption for sample in read(tmp_path, captions="caption").samples] == ["sks, this"]


def test_captions_none_is_the_trigger_alone(tmp_path):
    picture(tmp_path / "a.png", caption="not this")
    dataset = read(tmp_path, captions="none")
    assert [sample.caption for sample in dataset.samples] == ["sks"]
    assert dataset.notes == ()


@pytest.mark.parametrize("caption", [None, " \n"])
def test_a_missing_caption_is_the_trigger_and_noted(tmp_path, caption):
    picture(tmp_path / "a.png", caption="a cat")
    picture(tmp_path / "b.png", caption=caption)
    dataset = read(tmp_path)
    assert [sample.caption for sample in dataset.samples] == ["sks, a cat", "sks"]
    assert dataset.notes == ("1 picture of 2 without a caption; the trigger word stands alone there",)


def test_each_folder_may_have_its_own_trigger(tmp_path):
    picture(tmp_path / "one" / "a.png", caption="a [trigger]")
    picture(tmp_path / "two" / "b.png", caption="a bench")
    data = [
        PlannedData(folder=str(tmp_path / name), resolution=64, trigger=word)
        for name, word in [("one", "sks"), ("two", "")]
    ]
    assert [sample.caption for sample in index(data, Sizing(16)).samples] == ["a sks", "a bench"]


@pytest.mark.parametrize("captions", ["txt", "none"])
def test_neither_caption_nor_trigger_is_refused(tmp_path, captions):
    for number in range(7):
        picture(tmp_path / f"{number}.png")
    message = refusal(tmp_path, trigger="", captions=captions)
    assert "7 pictures of 7 without a caption" in message
    assert "0.png" in message
    assert "and 2 more" in message
    assert "--trigger" in message


def test_a_caption_that_is_not_utf_8(tmp_path):
    picture(tmp_path / "a.png").with_suffix(".txt").write_bytes("Zoë".encode("latin-1"))
    message = refusal(tmp_path)
    assert "a.txt" in message
    assert "UTF-8" in message


# -- what cannot be used -----------------------------------------------------------------------------------------


def test_all_unusable_pictures_are_named_at_once(tmp_path):
    picture(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("not a picture at all")
    (tmp_path / "empty.jpg").write_bytes(b"")
    picture(tmp_path / "small.png", (64, 15))
    message = refusal(tmp_path)
    assert "3 pictures cannot be used" in message
    assert all(name in message for name in ("text.png (not a picture)", "empty.jpg", "small.png (64x15 is smaller"))
    assert "good.png" not in message
    assert "remove them" in message


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("kept", [4, 12, 20])
def test_a_truncated_header(tmp_path, suffix, kept):
    file = picture(tmp_path / f"a{suffix}")
    file.write_bytes(file.read_bytes()[:kept])
    assert f"a{suffix}" in refusal(tmp_path)


@pytest.mark.parametrize(("size", "fits"), [((16, 16), True), ((16, 64), True), ((15, 64), False), ((64, 15), False)])
def test_a_picture_must_hold_a_patch(tmp_path, size, fits):
    picture(tmp_path / "a.png", size)
    if fits:
        assert read(tmp_path).passes == 1
    else:
        assert "smaller than one patch, 16 pixels" in refusal(tmp_path)


def test_a_missing_folder(tmp_path):
    message = refusal(tmp_path / "nowhere")
    assert "no folder" in message
    assert "nowhere" in message


def test_an_empty_folder(tmp_path):
    (tmp_path / "other").mkdir()
    picture(tmp_path / "other" / "a.png")
    message = refusal(tmp_path)
    assert "holds no pictures" in message
    assert "40_name" in message


def test_a_file_instead_of_a_folder(tmp_path):
    assert "is a file, not a folder" in refusal(picture(tmp_path / "a.png"))


def test_one_picture_named_twice(tmp_path):
    picture(tmp_path / "40_maya" / "a.png")
    message = refusal(tmp_path / "40_maya", tmp_path)
    assert "1 picture named more than once" in message
    assert "use repeats" in message


def test_two_folders_with_pictures_of_one_name_are_different_pictures(tmp_path):
    picture(tmp_path / "one" / "a.png")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert read(tmp_path / "one", tmp_path / "two").passes == 2


def test_what_is_worth_saying(tmp_path):
    picture(tmp_path / "own" / "small.png", (32, 32), "a")
    picture(tmp_path / "own" / "long.png", (1000, 100), "b")
    picture(tmp_path / "own" / "40_maya" / "inner.png", (64, 64), "c")
    notes = read(tmp_path / "own").notes
    assert "1 picture of 2 smaller than the training resolution, taught at its own size" in notes
    assert "1 picture of 2 cut by more than a quarter to fit a bucket" in notes
    assert any("not read" in note and "40_maya" in note for note in notes)


def test_a_folder_shown_no_times_is_refused(tmp_path):
    picture(tmp_path / "0_maya" / "a.png", (64, 64), "a")
    assert "0 times, by its name" in refusal(tmp_path / "0_maya")


def test_a_placeholder_without_a_trigger_is_refused(tmp_path):
    picture(tmp_path / "a.png", (64, 64), "[trigger] smiling")
    assert "holds [trigger]" in refusal(tmp_path, trigger="")
