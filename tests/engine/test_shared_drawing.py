"""Pictures divided among several processes: the same as one draws, and what happens to one happens to all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest
import torch
from torch.distributed import HashStore

from lorakit import Kit, Layer
from lorakit.cli import run
from lorakit.control import Control
from lorakit.engine.crew import Crew
from lorakit.engine.grid import Grid
from lorakit.engine.ranks import Ranks
from lorakit.errors import RunError
from lorakit.grid import Piece
from tests.engine.crew import Crowd, Told
from tests.engine.several import asked, codes

CELLS = ("--strength", "0.5", "--strength", "1", "--guidance", "1", "--guidance", "2", "-p", "sks, one", "--steps", "2")
"""Of two checkpoints eight pictures, of which half take a pass a step and half take two."""


@dataclass(frozen=True)
class Drawn:
    """A run of two checkpoints that drew nothing, and how many processes draw its grid in which way."""

    crew: Crowd
    folder: Path

    def grid(self, count: int, *more: str, **how: object) -> list[Told]:
        return self.crew.run(count, "grid", str(self.folder), *CELLS, "--size", "32", *more, **how)

    def files(self) -> dict[str, bytes]:
        """All that lies in the grid, and takes it away."""
        place = self.folder / "grid"
        found = {str(one.relative_to(place)): one.read_bytes() for one in place.rglob("*") if one.is_file()}
        shutil.rmtree(place)
        return found


@pytest.fixture(scope="module")
def taught(crew, place) -> Drawn:
    settings = {"train__updates": 2, "save__every": 1, "optimizer__learning_rate": 0.05}
    assert codes(crew.run(1, *asked(place, "drawn", **settings))) == [0]
    return Drawn(crew, place / "runs" / "drawn")


@pytest.fixture
def drawn(taught) -> Drawn:
    """The same without a grid."""
    shutil.rmtree(taught.folder / "grid", ignore_errors=True)
    return taught


@pytest.fixture(scope="module")
def alone(taught) -> dict[str, bytes]:
    """What one process draws."""
    (told,) = taught.grid(1)
    assert "8 drawn, 0 kept" in told.out, told
    files = taught.files()
    assert len(files) == 10
    assert len({data for name, data in files.items() if name.startswith("pieces")}) == 8
    return files


@pytest.fixture
def counted(tmp_path) -> Callable[[int], list[int]]:
    """How many pictures each process drew, with `at` noting them."""

    def read(count: int) -> list[int]:
        files = [tmp_path / f"{number}.txt" for number in range(count)]
        return [int(one.read_text()) if one.is_file() else 0 for one in files]

    return read


@pytest.mark.slow
@pytest.mark.parametrize(("count", "shares"), [(2, [4, 4]), (3, [3, 3, 2])])
def test_a_grid_is_divided_and_every_byte_is_that_of_one_process(drawn, alone, tmp_path, counted, count, shares):
    told = drawn.grid(count, at={"do": "note pictures", "into": str(tmp_path)})
    assert codes(told) == [0] * count, told
    assert counted(count) == shares
    assert "8 drawn, 0 kept" in told[0].out
    assert [(one.out, one.err) for one in told[1:]] == [("", "")] * (count - 1)
    assert drawn.files() == alone


@pytest.mark.slow
def test_fewer_pictures_than_processes(drawn, alone, tmp_path, counted):
    drawn.grid(1)
    next((drawn.folder / "grid" / "pieces").iterdir()).unlink()
    told = drawn.grid(3, at={"do": "note pictures", "into": str(tmp_path)})
    assert codes(told) == [0] * 3, told
    assert counted(3) == [1, 0, 0]
    assert "1 drawn, 7 kept" in told[0].out
    assert codes(again := drawn.grid(2)) == [0, 0]
    assert "0 drawn, 8 kept" in again[0].out
    assert drawn.files() == alone


@pytest.mark.slow
def test_an_error_in_one_stops_all_and_what_was_drawn_is_kept(drawn, alone):
    told = drawn.grid(2, at={"rank": 1, "picture": 3, "do": "raise"})
    assert codes(told) == [1, 1], told
    assert "process 1 on" in told[0].err
    assert "something broke" in told[0].err
    assert "Traceback" not in told[0].err + told[1].err
    (again,) = drawn.grid(1)
    assert any(f"{8 - kept} drawn, {kept} kept" in again.out for kept in (4, 5)), again  # the first may have one more
    assert drawn.files() == alone


@pytest.mark.slow
def test_a_lost_process_is_named_and_the_same_command_goes_on(drawn, alone):
    told = drawn.grid(2, at={"rank": 1, "picture": 2, "do": "kill"}, watched=False)
    assert codes(told) == [1, -9], told
    assert "process 1 on" in told[0].err
    assert "was lost" in told[0].err
    assert "The same command goes on: what was drawn is kept." in told[0].err
    assert codes(drawn.grid(2)) == [0, 0]
    assert drawn.files() == alone


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_stop_asked_of_one_stops_all(drawn, number):
    told = drawn.grid(2, at={"rank": number, "picture": 2, "do": "terminate"})
    assert told[0].code == 130, told
    assert "stopped" in told[0].out
    assert told[1].err == ""
    assert 2 <= len(drawn.files()) - 1 < 8  # beside the list of them


@pytest.mark.slow
def test_prompts_of_a_file_are_divided(drawn, tmp_path, counted):
    def sample(count: int, name: str) -> list[bytes]:
        prompts = [part for one in ("sks, one", "sks, two", "sks, three") for part in ("-p", one)]
        command = ["sample", str(drawn.folder), *prompts, "--size", "32", "--steps", "2", "-o", str(tmp_path / name)]
        told = drawn.crew.run(count, *command, at={"do": "note pictures", "into": str(tmp_path)})
        assert codes(told) == [0] * count, told
        assert [(one.out, one.err) for one in told[1:]] == [("", "")] * (count - 1)
        return [one.read_bytes() for one in sorted(tmp_path.glob(f"{Path(name).stem}-*.png"))]

    one = sample(1, "one.png")
    assert sample(2, "two.png") == one
    assert (len(one), counted(2)) == (3, [2, 1])


@pytest.mark.slow
def test_a_stop_while_the_processes_wait_for_one_another_is_one(drawn, crew, place):
    told = drawn.grid(2, at={"do": "stop before all are here"}, watched=False)
    assert (told[0].code, told[0].err) == (130, "\nstopping after what is under way\n"), told
    assert (told[1].code, told[1].err) == (0, ""), told
    told = crew.run(2, *asked(place, "early"), at={"do": "stop before all are here"}, watched=False)
    assert (told[0].code, told[0].err) == (130, "\nstopping after what is under way\n"), told
    assert not (place / "runs" / "early").exists()


def test_who_is_done_with_its_pictures_is_not_taken_for_lost(monkeypatch):
    """Three pictures: the third process draws for longer than a lost one is waited for, and the second is done."""
    monkeypatch.setattr("lorakit.engine.crew.SLICE", 0.01)
    monkeypatch.setattr("lorakit.engine.crew.GONE", 0.1)
    store, long = HashStore(), Event()
    crews = [Crew(store, number, 3, torch.device("cpu"), 30.0, Control()) for number in range(3)]

    def work(crew: Crew) -> list[bytes]:
        def make(number: int) -> bytes:
            if number == 2:
                long.wait(0.5)
            return bytes([number])

        crew.told({"host": "here"})
        try:
            return [made for _, made in crew.made(range(3), make)]
        finally:
            crew.part()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, crews)) == [[b"\x00", b"\x01", b"\x02"], [], []]


def test_a_process_that_sees_other_files_says_so(tmp_path):
    class Second(Ranks):
        number = 1

        def said(self, value: object) -> list[str]:
            return [f"{value}"]

    grid = Grid(tmp_path, [Piece(1, 1.0, 1.0, 0, "a prompt", 42, "key")])
    with pytest.raises(RunError, match=r"process 1 does not know .*Let all hosts see the same run folder"):
        grid._named(Second())


@pytest.mark.slow
def test_torchrun_is_called_for_several(drawn, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("lorakit.cli.drawing.launch", lambda count: calls.append(count) or 7)
    file = next(drawn.folder.glob("checkpoints/*/drawn-*.safetensors"))
    assert run(["grid", str(drawn.folder), "-p", "x", "--gpus", "3"]) == 7
    assert run(["sample", str(file), "-p", "x", "-o", str(tmp_path / "x.png"), "--set", "train.gpus=2"]) == 7
    assert calls == [3, 2]


@pytest.mark.slow
def test_every_process_draws_with_the_whole_base(drawn, capsys):
    _, plan = Kit().drawing(drawn.folder, [Layer({"train": {"gpus": 2}}, "the test")])
    assert plan.settings.train.sharding == "replicated"
    sharded = ["--gpus", "2", "--set", "train.sharding=sharded"]
    assert run(["grid", str(drawn.folder), "-p", "x", *sharded]) == 2
    assert "train.sharding = 'sharded' does not go with drawing" in capsys.readouterr().err
