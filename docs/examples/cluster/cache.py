"""Copies cached values that are missing from one place to another, each a folder or a URL that fsspec knows.

python cache.py s3://bucket/lorakit-cache runs/.cache     before the runs
python cache.py runs/.cache s3://bucket/lorakit-cache     after them
Values are named by their content and never change, so what is there need not be compared, and the order is free.
"""

import sys

from fsspec.core import url_to_fs


def copy(source: str, target: str) -> int:
    """How many values were missing and are there now."""
    (here, place), (there, goal) = url_to_fs(source), url_to_fs(target)
    held = {path[len(place) :].lstrip("/") for path in here.glob(f"{place}/??/*.safetensors")}
    known = {path[len(goal) :].lstrip("/") for path in there.glob(f"{goal}/??/*.safetensors")}
    for name in sorted(held - known):
        there.makedirs(f"{goal}/{name[:2]}", exist_ok=True)
        with here.open(f"{place}/{name}", "rb") as old, there.open(f"{goal}/{name}.part", "wb") as new:
            new.write(old.read())
        there.mv(f"{goal}/{name}.part", f"{goal}/{name}")
    return len(held - known)


if __name__ == "__main__":
    print(f"{copy(*sys.argv[1:3])} values copied")
