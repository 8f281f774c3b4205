"""How often `lorakit check` calls a picture enlarged, rightly and wrongly: `python benchmarks/enlarged.py FOLDER`.

FOLDER holds sharp pictures. Each is looked at in several sizes and formats as it is, and after it was made smaller and
enlarged again. Without FOLDER, those that scikit-image and scikit-learn ship are taken, where they are installed.
Printed is, for each kind, how many were called enlarged.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from lorakit.audit.look import look
from lorakit.audit.of_pictures import BLURRED, sharpness
from lorakit.buckets import Shape, fit

NAMES = {
    "skimage/data": (
        "astronaut.png brick.png camera.png cell.png chelsea.png coffee.png coins.png grass.png gravel.png "
        "hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg"
    ),
    "sklearn/datasets/images": "china.jpg flower.jpg",
}
PARTS = (1.0, 0.75, 0.67, 0.5)
FORMATS: tuple[tuple[str, dict[str, int]], ...] = (
    (".png", {}), (".jpg", {"quality": 95}), (".jpg", {"quality": 75}), (".jpg", {"quality": 50})
)  # fmt: skip
TIMES = (1.5, 2.0, 3.0, 4.0)
WAYS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
RESOLUTION, SIDES = 1024, 16


def shipped() -> list[Path]:
    """The pictures of the two packages."""
    found = []
    for place, names in NAMES.items():
        package, _, inner = place.partition("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            sys.exit(f"name a folder of pictures, or install {package}")
        found += [Path(spec.origin).parent / inner / name for name in names.split()]
    return found


def kinds(original: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """The picture as it is in several sizes, and enlarged to its own size in several ways."""
    for part in PARTS:
        yield "sharp", scaled(original, part, Image.Resampling.LANCZOS)
    for times in TIMES:
        small = scaled(original, 1 / times, Image.Resampling.LANCZOS)
        for way in WAYS:
            yield f"enlarged {times:g} times", small.resize(original.size, way)


def scaled(image: Image.Image, part: float, way: Image.Resampling) -> Image.Image:
    """The picture at a part of its size."""
    return image.resize((round(image.width * part), round(image.height * part)), way)


def called(path: Path) -> bool:
    """Whether the check calls the file enlarged."""
    seen = look(str(path))
    ratio = sharpness(seen, fit(Shape(seen.width, seen.height), RESOLUTION, SIDES))
    return ratio is not None and ratio < BLURRED


def main() -> None:
    """Measure and print a table, and which sharp pictures were called enlarged."""
    originals = sorted(Path(sys.argv[1]).iterdir()) if sys.argv[1:] else shipped()
    counts: dict[str, list[bool]] = {}
    wrong: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for original in originals:
            with Image.open(original) as opened:
                image = opened.convert("RGB")
            for kind, made in kinds(image):
                for ending, options in FORMATS:
                    file = Path(folder) / f"it{ending}"
                    made.save(file, **options)
                    found = called(file)
                    counts.setdefault(kind, []).append(found)
                    if found and kind == "sharp":
                        wrong[original.name] = wrong.get(original.name, 0) + 1
    for kind, answers in counts.items():
        print(f"{kind:20}{sum(answers):6} of {len(answers):4}  {sum(answers) / len(answers):6.1%}")
    print("sharp, called enlarged:", ", ".join(f"{name} {count}" for name, count in wrong.items()) or "none")


if __name__ == "__main__":
    main()
