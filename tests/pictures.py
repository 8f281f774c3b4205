"""Small pictures for tests."""

from PIL import Image


def picture(path, size=(64, 64), caption=None, colour="tomato", **save):
    """Write a picture of one colour, with its caption beside it; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **save)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path
