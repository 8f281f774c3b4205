"""Fixtures of every test. Nothing here imports torch: the tests of the deciding half must not wait for it."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import hypothesis
import pytest

from tests.core.fake import make_kit
from tests.pictures import picture

hypothesis.settings.register_profile("lorakit", deadline=None, max_examples=60, derandomize=True, database=None)
hypothesis.settings.load_profile("lorakit")


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread for torch too, once somebody imported it: the tests share few cores."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """No test reads or writes the cache folder of whoever runs it."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture
def pictures(tmp_path):
    """A folder of four captioned pictures in two shapes."""
    folder = tmp_path / "pictures"
    for number, size in enumerate([(64, 64), (64, 64), (64, 64), (96, 48)]):
        picture(folder / f"{number}.png", size, caption=f"a cat, number {number}")
    return folder


@pytest.fixture
def kit():
    """A Kit with core and the fake family, and nothing that is installed."""
    return make_kit()


@pytest.fixture
def asked(pictures, tmp_path):
    """The least that a run of the fake family asks for."""
    return {
        "family": "fake",
        "trigger": "sks",
        "output": str(tmp_path / "runs"),
        "data": [{"folder": str(pictures)}],
    }
