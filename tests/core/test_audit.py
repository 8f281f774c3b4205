"""What is odd about pictures and captions: each finding, on pictures made to show it."""

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lorakit.audit import KINDS, Asked, Weight, audit, looks
from lorakit.audit.look import look
from lorakit.captions import SUBJECT, CaptionAdvice
from lorakit.dataset import Sizing
from lorakit.errors import DataError
from lorakit.pictures import ORIENTATION
from lorakit.planned import PlannedData
from tests.pictures import scene

CAPTION = "sks on a bench, number {}"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Three good pictures, at which nothing is odd."""
    for number in range(3):
        put(tmp_path / "own", f"{number}.png", scene(number))
    return tmp_path / "own"


def put(folder, name, image, caption=CAPTION, **save):
    """A picture in the folder, with a caption of its own unless that is None."""
    folder.mkdir(exist_ok=True)
    image.save(folder / name, **save)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption.format(name), encoding="utf-8")
    return folder / name


def audited(folder, trigger="sks", resolution=256, most=0, batch_size=1, advice=None, prompts=(), **table):
    given = {"folder": str(folder)} if "list" not in table else {}
    data = PlannedData(**given, trigger=trigger, resolution=resolution, **table)
    sizing = Sizing(16, most)
    asked = Asked(tables=[data], sizing=sizing, batch_size=batch_size, trigger=trigger, prompts=prompts, advice=advice)
    return audit(asked)


def found(folder, **given):
    """By kind, the names of the pictures at which it was found."""
    report = audited(folder, **given)
    return {kind: [Path(one.where).name for one in some] for kind, some in report.by_kind.items()}


def test_nothing_odd(folder):
    report = audited(folder)
    assert report.findings == ()
    assert [(str(one.shape), one.pictures) for one in report.fillings] == [("256x256", 3)]


def test_every_kind_has_words_and_stands_by_its_weight():
    weights = [kind.weight for kind in KINDS.values()]
    assert weights == sorted(weights, key=list(Weight).index)
    assert all(kind.says and (kind.advice or kind.name == "advice") for kind in KINDS.values())


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"), [("a.png", b"text"), ("a.jpg", b""), ("a.webp", b"\0" * 100), ("a.png", b"\x89PNG\r\n\x1a\n")]
)
def test_unreadable(folder, name, content):
    (folder / name).write_bytes(content)
    (folder / "a.txt").write_text("sks a")
    assert found(folder) == {"unreadable": [name]}


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.4, 0.9])
def test_truncated(folder, suffix, kept):
    file = put(folder, f"a.{suffix}", scene(9))
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])
    assert found(folder) in ({"truncated": [file.name]}, {"unreadable": [file.name]})  # a TIFF's directory is its end


def test_a_picture_that_vanishes_is_unreadable(tmp_path):
    assert "No such file" in look(str(tmp_path / "nothing.png")).problem


def test_sizes(folder):
    put(folder, "patch.png", scene(3, (300, 15)))
    put(folder, "tiny.png", scene(4, (112, 112)))
    put(folder, "small.png", scene(5, (208, 208)))
    put(folder, "long.png", scene(6, (1280, 200)))
    put(folder, "big.png", scene(7, (700, 700)))
    assert found(folder) == {
        "patch": ["patch.png"],
        "tiny": ["tiny.png"],
        "small": ["small.png"],
        "extreme": ["long.png"],
    }


def test_cut_far(folder, monkeypatch):
    monkeypatch.setattr("lorakit.audit.of_pictures.MUCH", 0.05)
    put(folder, "wide.png", scene(3, (310, 256)))
    report = audited(folder)
    assert found(folder) == {"cropped": ["wide.png"]}
    assert report.worst[1] == max(one.cropped for one in report.fits.values()) > 0.05
    assert report.cropped == pytest.approx(report.worst[1] / 4)


# -- enlarged ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [None, 95, 75])
def test_no_sharp_picture_is_called_enlarged(tmp_path, quality):
    save = {} if quality is None else {"quality": quality}
    for seed in range(8):
        put(tmp_path / "own", f"{seed}.{'jpg' if save else 'png'}", scene(seed, (288, 272)), **save)
    assert found(tmp_path / "own") == {}


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("how", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_enlarged_pictures_are_found(tmp_path, times, how):
    for seed in range(4):
        small = scene(seed, (256 // times, 240 // times))
        put(tmp_path / "own", f"{seed}.jpg", small.resize((256, 240), how), quality=90)
    assert len(found(tmp_path / "own")["upscaled"]) == 4


def test_enlarged_and_taught_at_half_the_size_is_sharp(folder):
    put(folder, "a.png", scene(8, (512, 512)).resize((1024, 1024), Image.Resampling.BICUBIC))
    assert found(folder, resolution=256) == {}
    assert found(folder, resolution=1024)["upscaled"] == ["a.png"]


def test_a_gradient_is_too_smooth_to_tell(folder):
    put(folder, "a.png", Image.merge("RGB", [Image.linear_gradient("L"), *[Image.new("L", (256, 256), 90)] * 2]))
    assert found(folder) == {}


def test_where_two_strips_meet_is_no_detail(tmp_path):
    """Each quarter has upright stripes, black where those of the next are white: within it, rows are equal."""
    row = bytes((0, 200)) * 512
    whole = Image.frombytes(
        "L", (1024, 1024), b"".join((row if part % 2 else row[1:] + row[:1]) * 256 for part in range(4))
    )
    whole.save(tmp_path / "a.png")
    assert look(str(tmp_path / "a.png")).detail[0] == 0


@pytest.mark.parametrize("size", [(1024, 1024), (130, 4000), (4000, 130), (700, 600), (16, 16), (127, 127), (15, 400)])
def test_detail_is_measured_at_every_scale_that_has_room(tmp_path, size):
    scene(1, size).save(tmp_path / "a.png")
    seen = look(str(tmp_path / "a.png"))
    assert not seen.problem
    sides = [-(-min(size) // 2**octave) for octave in range(4)]
    assert len(seen.detail) == sum(side >= 16 for side in sides)
    assert all(one > 1 for one in seen.detail)


# -- content -----------------------------------------------------------------------------------------------------


def test_transparent_grey_and_flat(folder):
    half = scene(3).convert("RGBA")
    half.putalpha(Image.linear_gradient("L"))
    put(folder, "half.png", half)
    put(folder, "opaque.png", scene(4).convert("RGBA"))
    put(folder, "grey.jpg", scene(5).convert("L"))
    put(folder, "grey-in-colour.jpg", scene(6).convert("L").convert("RGB"))
    put(folder, "16-bit.png", scene(7).convert("L").convert("I").point(lambda value: value * 257).convert("I;16"))
    put(folder, "red.png", Image.new("RGB", (256, 256), "red"))
    palette = scene(8).quantize(64)
    palette.info["transparency"] = 0
    put(folder, "palette.png", palette)
    assert found(folder) == {
        "flat": ["red.png"],
        "transparent": ["half.png", "palette.png"],
        "grey": ["16-bit.png", "grey-in-colour.jpg", "grey.jpg"],
    }


# -- alike -------------------------------------------------------------------------------------------------------


def test_the_same_file_twice(folder):
    shutil.copy(folder / "1.png", folder / "7.png")
    (folder / "7.txt").write_text("sks again")
    report = audited(folder)
    assert [one.message for one in report.findings] == ["the same file as 7.png", "the same file as 1.png"]


def changed(how):
    image = scene(1, (512, 512))
    if how == "quality":
        held = io.BytesIO()
        image.save(held, "JPEG", quality=40)
        return Image.open(held)
    if how == "brightness":
        return image.point(lambda value: min(255, value + 25))
    if how == "size":
        return image.resize((300, 300))
    exif = image.getexif()
    exif[ORIENTATION] = 6
    return image.transpose(Image.Transpose.ROTATE_90)


@pytest.mark.parametrize("how", ["quality", "brightness", "size", "turned"])
def test_nearly_the_same(folder, how):
    save = {}
    if how == "turned":
        save["exif"] = Image.Exif()
        save["exif"][ORIENTATION] = 6
    put(folder, "a.png", scene(1, (512, 512)))
    put(folder, "b.jpg", changed(how), **save)
    (folder / "1.png").unlink()
    assert found(folder).get("near") == ["a.png", "b.jpg"]


def test_other_pictures_are_not_alike(tmp_path):
    for seed in range(60):
        put(tmp_path / "own", f"{seed}.jpg", scene(seed, (96, 96)))
    assert "near" not in found(tmp_path / "own", resolution=96)


def test_flat_pictures_are_not_alike_for_being_flat(folder):
    for colour in ("red", "blue", "white"):
        put(folder, f"{colour}.png", Image.new("RGB", (256, 256), colour))
    assert "near" not in found(folder)


# -- captions ----------------------------------------------------------------------------------------------------


def test_captions(folder):
    (folder / "0.txt").unlink()
    (folder / "1.txt").write_text(" \n")
    (folder / "2.txt").write_text("sks " + "a word " * 400)
    put(folder, "3.png", scene(3), "sks, the same")
    put(folder, "4.png", scene(4), "sks, the same")
    put(folder, "5.png", scene(5)).with_suffix(".txt").write_bytes("Zoë".encode("latin-1"))
    assert found(folder) == {
        "illegible": ["5.png"],
        "missing": ["0.png"],
        "empty": ["1.png"],
        "identical": ["3.png", "4.png"],
        "overlong": ["2.png"],
    }


def test_captions_none_asks_for_none(folder):
    assert found(folder, captions="none") == {}
    assert found(folder, captions="none", trigger="") == {"mute": ["0.png", "1.png", "2.png"]}


def test_neither_caption_nor_trigger(folder):
    (folder / "0.txt").unlink()
    (folder / "1.txt").write_text("[trigger] smiling")
    assert found(folder, trigger="") == {"mute": ["0.png"], "placeholder": ["1.png"]}


def test_triggers_that_are_not_written_alike(folder):
    (folder / "0.txt").write_text("a bench")
    (folder / "1.txt").write_text("[trigger] there")
    (folder / "2.txt").write_text("SKS on a bench")
    report = audited(folder)
    assert [Path(one.where).name for one in report.by_kind["trigger"]] == ["0.png", "2.png"]
    for name in ("0.txt", "1.txt", "2.txt"):
        (folder / name).write_text(f"a bench, {name}")
    assert found(folder) == {}  # nowhere is alike too


def test_what_the_family_advises(folder):
    advice = CaptionAdvice(
        shortest=10, longest=60, order=((SUBJECT, ()), ("lighting", ("light",))), because="a test says so"
    )
    (folder / "0.txt").write_text("sks")
    (folder / "1.txt").write_text("evening light, sks on a bench")
    (folder / "2.txt").unlink()
    report = audited(folder, advice=advice, prompts=["light, sks at home"])
    told = {Path(one.where).name: one.message for one in report.by_kind["advice"]}
    assert told == {
        "0.png": "3 characters, where 10 to 60 are advised",
        "1.png": "its parts come as lighting then subject, where subject, lighting is advised",
        "prompt 'light, sks at home'": "its parts come as lighting then subject, where subject, lighting is advised",
    }


# -- references and folders --------------------------------------------------------------------------------------


def test_references(folder, tmp_path):
    for name in ("0.png", "1_1.png", "1_2.png", "stray.png"):
        put(tmp_path / "seen", name, scene(name, (64, 64)), None)
    (tmp_path / "seen" / "0.png").write_bytes(b"broken")
    given = {"references": str(tmp_path / "seen")}
    assert found(folder, most=1, **given) == {
        "unreadable": ["0.png"],
        "stray": ["stray.png"],
        "references": ["1.png", "2.png"],
    }
    assert found(folder, most=0, **given)["references"] == ["0.png", "1.png"]
    assert "references" not in found(folder, most=2, **given)


def test_a_picture_under_two_names(folder):
    (folder / "link.png").symlink_to("0.png")
    (folder / "link.txt").write_text("sks, another")
    kinds = found(folder)
    assert kinds["twice"] == ["0.png", "link.png"]


def test_folders_that_are_passed_over(folder):
    put(folder / "40_more", "a.png", scene(9))
    assert found(folder) == {"folder": ["40_more"]}


def test_how_buckets_fill(folder):
    put(folder, "wide.png", scene(4, (384, 192)))
    report = audited(folder, batch_size=2, repeats=3)
    assert [(one.pictures, one.passes, one.batches, one.empty) for one in report.fillings] == [
        (3, 9, 5, 1),
        (1, 3, 2, 1),
    ]


def test_a_list(folder):
    file = folder / "list.jsonl"
    file.write_text('{"target": "0.png", "caption": "sks sits"}\n{"target": "gone.png"}\n')
    assert found(folder, list=str(file)) == {"unreadable": ["gone.png"], "missing": ["gone.png"]}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        audited(tmp_path / "nowhere")


# -- remembering, and several processes --------------------------------------------------------------------------


def test_pictures_are_looked_at_once(folder, monkeypatch):
    monkeypatch.setattr("lorakit.remembered.SETTLED", 0)
    seen, really = [], looks.look
    monkeypatch.setattr(looks, "look", lambda path: (seen.append(Path(path).name), really(path))[1])
    first = audited(folder)
    assert seen == ["0.png", "1.png", "2.png"]
    assert audited(folder) == first
    put(folder, "1.png", scene(77))
    audited(folder)
    assert seen == ["0.png", "1.png", "2.png", "1.png"]


def test_what_was_seen_before_a_stop_is_remembered(folder, monkeypatch):
    monkeypatch.setattr("lorakit.remembered.SETTLED", 0)
    really = looks.look

    def stops(path):
        if path.endswith("2.png"):
            raise KeyboardInterrupt
        return really(path)

    monkeypatch.setattr(looks, "look", stops)
    with pytest.raises(KeyboardInterrupt):
        audited(folder)
    seen = []
    monkeypatch.setattr(looks, "look", lambda path: (seen.append(Path(path).name), really(path))[1])
    audited(folder)
    assert seen == ["2.png"]


def test_processes_say_the_same_as_one(folder, monkeypatch):
    paths = [str(path) for path in sorted(folder.glob("*.png"))] * 6
    monkeypatch.setattr(looks, "FEW", 1)
    monkeypatch.setattr(looks, "_cores", lambda: 2)
    assert list(looks.each(look, paths)) == list(map(look, paths))
