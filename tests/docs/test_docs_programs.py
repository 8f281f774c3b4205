"""The example programs for hosts do what they say: the script, the notebook, the server."""

import ast
import asyncio
import json
import runpy
import sys
from pathlib import Path

import nbformat
import pytest

from lorakit.events import Asked, Event, PreviewDrawn, RunFinished, RunPaused, RunStarted, RunStopped, UpdateFinished
from tests.docs.pages import ROOT

HERE = ROOT / "docs" / "examples" / "embedding"


def test_the_script(pictures, tmp_path, monkeypatch, capsys):
    assert len((HERE / "script.py").read_text().splitlines()) <= 30
    monkeypatch.setattr(sys, "argv", ["script.py", str(pictures), str(tmp_path / "runs")])
    runpy.run_path(str(HERE / "script.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "update 10 of 10: loss 0." in said
    assert f"drawn: {tmp_path / 'runs' / 'script' / 'samples' / '000005-0.png'}" in said
    assert f"done: {tmp_path / 'runs' / 'script' / 'script.safetensors'}\ndiffusers" in said
    with pytest.raises(SystemExit, match=r"error: there is a run in "):
        runpy.run_path(str(HERE / "script.py"), run_name="__main__")


def test_the_notebook(pictures, monkeypatch):
    """Cell after cell, in one namespace, as a kernel does it."""
    notebook = nbformat.read(HERE / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    monkeypatch.chdir(pictures.parent)
    space: dict[str, object] = {}
    shown = []
    for number, cell in enumerate(one for one in notebook.cells if one.cell_type == "code"):
        *body, last = ast.parse(cell.source).body
        value = isinstance(last, ast.Expr)
        parts = body if value else [*body, last]
        exec(compile(ast.Module(parts, []), f"cell {number}", "exec"), space)
        if value:
            shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), space))
    assert shown[-2][0] == 12
    assert [Path(path).name for path in shown[-2][2]] != []
    assert all(Path(path).is_file() for path in shown[-2][2])
    assert shown[-1][0].is_file()


async def asked(port, words, *headers):
    """The status and the body of an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([f"{words} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


async def followed(port, *headers):
    """The events of the stream, each with its number."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join(["GET /events HTTP/1.1", *headers, "", ""]).encode())
    number = -1
    while line := (await reader.readline()).decode().strip() or "-":
        if line == "event: end":
            break
        if line.startswith("id: "):
            number = int(line[4:])
        if line.startswith("data: "):
            yield number, Event.from_json(line[6:])
    writer.close()


def test_the_server(pictures, tmp_path, capsys):
    wanted = {
        "family": "qwen",
        "preset": "toy",
        "trigger": "sks",
        "name": "served",
        "output": str(tmp_path),
        "data": [{"folder": str(pictures)}],
        "train": {"updates": 500},
        "sampling": {"prompts": ["sks"], "every": 0, "strengths": [1], "steps": 2},
        "validation": {"every": 0},
    }
    program = runpy.run_path(str(HERE / "server.py"), run_name="server")
    mine = "X-Lorakit: 1"

    async def host():
        serving = asyncio.create_task(program["main"](wanted, port=0))
        said = ""
        while "\n" not in said:
            await asyncio.sleep(0.01)
            said += capsys.readouterr().out
        port, events = int(said.strip().rpartition(":")[2]), []
        assert (await asked(port, "GET /"))[1].startswith("<!doctype html>")
        assert (await asked(port, "GET /nothing"))[0] == 404
        assert (await asked(port, "POST /pause"))[0] == 403
        assert await asked(port, "POST /resume", mine) == (409, "it is not paused\n")
        async for number, event in followed(port):
            assert number == len(events)
            events.append(event)
            if isinstance(event, UpdateFinished) and event.update == 2:
                assert await asked(port, "POST /sample", mine) == (202, "taken\n")
                assert await asked(port, "POST /pause", mine) == (202, "taken\n")
            if isinstance(event, RunPaused):
                assert (await asked(port, "POST /stop", mine))[0] == 202
        late = [one async for one in followed(port, f"Last-Event-ID: {len(events) - 3}")]
        assert late == [(len(events) - 2, events[-2]), (len(events) - 1, events[-1])]
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        return events

    events = asyncio.run(host())
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunStopped)
    assert [(one.what, one.by) for one in events if isinstance(one, Asked) and not one.refused] == [
        ("sample", "the web"),
        ("pause", "the web"),
        ("stop", "the web"),
    ]
    assert [one for one in events if isinstance(one, PreviewDrawn)]
    assert not [one for one in events if isinstance(one, RunFinished)]
    journal = (tmp_path / "served" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in journal] == [json.loads(one.to_json()) for one in events]
