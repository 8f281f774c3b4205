"""Sizes and captions of many pictures, recalled while the files are the same."""

import os
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lorakit import dataset, pictures, remembered
from lorakit.buckets import Shape
from lorakit.dataset import Sizing, index
from lorakit.planned import PlannedData
from lorakit.remembered import Notebook, cache_folder, stamp
from tests.pictures import picture

FILE = f"pictures-{remembered.VERSION}.sqlite"


@pytest.fixture(autouse=True)
def remembering(monkeypatch, tmp_path):
    """A cache folder of its own, used from the first picture on, for files that were made just now."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset, "WORTH_IT", 1)
    monkeypatch.setattr(remembered, "SETTLED", 0)


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        picture(tmp_path / "own" / f"{number}.png", (64, 64), f"caption {number}")
    return tmp_path / "own"


def read(folder, trigger="sks"):
    return index([PlannedData(folder=str(folder), trigger=trigger, resolution=64)], Sizing(16))


def counted(monkeypatch):
    """The pictures whose files are opened from now on."""
    opened, really = [], pictures.size
    monkeypatch.setattr(pictures, "size", lambda path, bad: (opened.append(path.name), really(path, bad))[1])
    return opened


def test_nothing_is_measured_twice_and_the_data_are_the_same(folder, monkeypatch):
    first, opened = read(folder), counted(monkeypatch)
    assert read(folder) == first
    assert not opened


def test_another_picture_or_caption_is_seen(folder, monkeypatch):
    read(folder)
    opened = counted(monkeypatch)
    picture(folder / "1.png", (32, 96), "another")
    picture(folder / "new.png", (64, 64), "new")
    (folder / "2.txt").unlink()
    samples = {sample.path.name: sample for sample in read(folder).samples}
    assert opened == ["1.png", "new.png"]
    assert samples["1.png"].size == Shape(32, 96)
    assert [samples[name].caption for name in ("0.png", "1.png", "2.png")] == ["sks, caption 0", "sks, another", "sks"]


def test_what_was_written_just_now_is_not_noted(folder, monkeypatch):
    monkeypatch.setattr(remembered, "SETTLED", 10**15)
    read(folder)
    opened = counted(monkeypatch)
    read(folder)
    assert opened == ["0.png", "1.png", "2.png"]


def test_the_same_size_and_time_in_another_file_is_seen(folder):
    picture(folder / "0.bmp", (64, 64))
    read(folder)
    before = (folder / "0.bmp").stat()
    picture(folder / "aside.bmp", (32, 128))  # as many pixels and bytes
    os.utime(folder / "aside.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder / "aside.bmp").replace(folder / "0.bmp")
    assert (folder / "0.bmp").stat().st_size == before.st_size
    assert [one.size for one in read(folder).samples if one.path.name == "0.bmp"] == [Shape(32, 128)]


def test_links_to_one_picture_are_still_found(folder):
    (folder / "link.png").symlink_to("0.png")
    for _ in range(2):
        with pytest.raises(Exception, match="1 picture named more than once"):
            read(folder)


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_torn_database_is_made_anew(folder, content, monkeypatch):
    first = read(folder)
    file = cache_folder() / FILE
    file.write_bytes(content)
    assert read(folder) == first
    assert read(folder) == first
    opened = counted(monkeypatch)
    read(folder)
    assert not opened


def test_a_database_with_other_things_in_it_knows_nothing(folder):
    first = read(folder)
    with sqlite3.connect(cache_folder() / FILE) as base:
        base.execute("update notes set value = '[1]' where kind = 'size'")
    base.close()
    assert read(folder) == first


def test_a_database_that_stays_locked_is_done_without(folder, monkeypatch):
    first = read(folder)
    monkeypatch.setattr(remembered, "PATIENCE", 0.01)
    base = sqlite3.connect(cache_folder() / FILE)
    base.execute("begin exclusive")
    (folder / "0.txt").write_text("caption 0 ")
    assert read(folder) == first
    base.close()


def test_a_cache_folder_that_cannot_be_made_is_done_without(folder, monkeypatch, tmp_path):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert len(read(folder).samples) == 3
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "lorakit"


@pytest.mark.skipif(sys.platform == "win32", reason="any bytes are a name on POSIX only")
def test_a_name_that_is_not_utf_8(tmp_path):
    picture(tmp_path / "own" / os.fsdecode(b"\xfe.png"))
    assert read(tmp_path / "own") == read(tmp_path / "own")


def test_many_write_at_once(tmp_path):
    def write(number):
        Notebook().write("kind", f"folder {number % 4}", {"a": (stamp(tmp_path.stat()), number)})
        return Notebook().read("kind", f"folder {number % 4}")

    with ThreadPoolExecutor(8) as pool:
        for number, seen in enumerate(pool.map(write, range(40))):
            assert seen["a"][1] % 4 == number % 4


def test_old_folders_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(remembered, "FOLDERS", 5)
    for number in range(12):
        Notebook().write("kind", f"folder {number}", {"a": (stamp(tmp_path.stat()), number)})
    assert [bool(Notebook().read("kind", f"folder {number}")) for number in (0, 6, 7, 11)] == [False, False, True, True]


def test_a_small_folder_opens_no_database(folder, monkeypatch):
    monkeypatch.setattr(dataset, "WORTH_IT", 500)
    read(folder)
    assert not cache_folder().exists()
