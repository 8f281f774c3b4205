"""The page of an audit: whole, small, and safe whatever names and captions hold."""

import base64
import io
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lorakit.audit import Asked, audit, page
from lorakit.dataset import Sizing
from lorakit.planned import PlannedData
from tests.pictures import scene

SMALL = scene(1, (80, 64))
NASTY = st.text(
    st.one_of(st.sampled_from("<>&\"'`={}%\\;"), st.characters(codec="utf-8", exclude_characters="/\0")), max_size=60
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Read(HTMLParser):
    """The tags of a page with their attributes, the text of its cards, and its pictures."""

    def __init__(self, text) -> None:
        super().__init__()
        self.tags, self.pictures, self.captions, self.names, self.last = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.last = held.get("class", "")
        if tag == "img":
            self.pictures.append(held["src"])

    def handle_endtag(self, tag):
        self.last = ""

    def handle_data(self, data):
        if self.last == "caption":
            self.captions.append(data)
        if self.last == "name":
            self.names.append(data)


def audited(folder, trigger="sks"):
    data = PlannedData(folder=str(folder), trigger=trigger, resolution=64)
    return audit(Asked(tables=[data], sizing=Sizing(16)))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own").mkdir()
    for number in range(3):
        scene(number, (80, 64)).save(tmp_path / "own" / f"{number}.png")
        (tmp_path / "own" / f"{number}.txt").write_text(f"sks {number}")
    return tmp_path / "own"


def test_a_page_holds_every_picture_and_nothing_from_elsewhere(folder):
    text = page.html(audited(folder))
    read = Read(text)
    assert read.names == ["0.png", "1.png", "2.png"]
    assert read.captions == ["sks 0", "sks 1", "sks 2"]
    for source in read.pictures:
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= page.SIDE
    assert "http://" not in text
    assert "https://" not in text


@pytest.fixture(scope="module")
def plain_tags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    SMALL.save(folder / "0.png")
    (folder / "0.txt").write_text("sks, plain")
    return Read(page.html(audited(folder, ""))).tags


@settings(max_examples=25)
@given(caption=NASTY, name=NASTY)
def test_captions_and_names_are_text_and_nothing_else(caption, name, plain_tags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    safe = name[:20] or "a"
    SMALL.save(folder / f"a{safe}.png")
    (folder / f"a{safe}.txt").write_text(f"sks {caption}", encoding="utf-8")
    read = Read(page.html(audited(folder, "")))
    assert read.tags == plain_tags
    assert "".join(read.captions) == " ".join(f"sks {caption}".split())
    assert "".join(read.names) == f"a{safe}.png"


@settings(max_examples=40)
@given(
    content=st.binary(max_size=300), text=st.binary(max_size=50), suffix=st.sampled_from(["png", "jpg", "tif", "webp"])
)
def test_no_file_makes_an_audit_fail(content, text, suffix, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    heads = {"png": b"\x89PNG\r\n\x1a\n", "jpg": b"\xff\xd8\xff", "tif": b"II*\0", "webp": b"RIFF\0\1\0\0WEBPVP8 "}
    (folder / f"a.{suffix}").write_bytes(heads[suffix] + content)
    (folder / "a.txt").write_bytes(text)
    report = audited(folder)
    assert [one.kind for one in report.findings if one.kind in ("unreadable", "truncated")]
    assert "<article" in page.html(report)


def test_a_large_set_makes_a_small_page_with_what_matters_first(folder, monkeypatch):
    monkeypatch.setattr(page, "MOST", 2)
    (folder / "2.txt").unlink()
    (folder / "9.png").write_text("broken")
    text = page.html(audited(folder))
    assert Read(text).names == ["9.png", "2.png"]
    assert "2 pictures more, left out" in text


def test_what_is_cut_away_is_drawn(folder):
    scene(5, (640, 80)).save(folder / "long.png")
    report = audited(folder)
    brought = report.fits[str(folder / "long.png")]
    share = brought.left / brought.resized.width
    assert share > 0.1
    assert f'style="inset: 0.0% {share:.1%} 0.0% {share:.1%}"' in page.html(report)
