"""Processes for tests, forked from one that has loaded everything and done nothing yet.

`python -m tests.engine.crew` reads tasks from its standard input, a line of JSON each, and answers each with a line.
Whoever is left when a task is over, or when its reader goes away, is killed.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tests.engine import hosts, shards, shares

DIE_WITH_PARENT = 1
LIMIT = 100.0  # seconds, of which a task that goes well takes a tenth


@dataclass(frozen=True)
class Told:
    """How a process ended, and what it printed."""

    code: int
    out: str
    err: str


class Crowd:
    """A server of processes."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.crew"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        count: int,
        *arguments: str,
        at: dict[str, Any] | None = None,
        kept: bool = True,
        watched: bool = True,
        apart: bool = False,
        **environment: str,
    ) -> list[Told]:
        """What became of `lorakit` with these arguments in so many processes.

        `at` says what one of them does to itself: {"rank": 1, "update": 3, "do": "kill"}, or all of them, without a
        rank. Where what they leave for one
        another is `kept`, it is by a process of its own, and where they are `watched`, one that dies has the others
        asked to stop, both as with torchrun. Where they are `apart`, each is on a host of its own.
        """
        assert self._server.stdin
        assert self._server.stdout
        task = {
            "count": count,
            "arguments": arguments,
            "at": at,
            "kept": kept,
            "watched": watched,
            "apart": apart,
            "environment": environment,
        }
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        return [Told(**one) for one in json.loads(self._server.stdout.readline())]

    def close(self) -> None:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()


# -- the server --------------------------------------------------------------------------------------------------


def serve() -> None:
    import diffusers
    import torch
    import transformers

    import lorakit.engine.sharding
    import lorakit_flux.model
    import lorakit_qwen.model
    import lorakit_sdxl.model

    torch.set_num_threads(1)
    assert all((diffusers, transformers, lorakit_flux.model, lorakit_qwen.model, lorakit_sdxl.model))
    assert lorakit.engine.sharding
    for line in sys.stdin:
        print(json.dumps(carry_out(json.loads(line))), flush=True)


def carry_out(task: dict[str, Any]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        children = dict[int, int]()
        keeper, port = keep() if task["kept"] else (0, free_port())
        places = hosts.Hosts() if task["apart"] else None
        for number in range(task["count"]):
            child = os.fork()
            if not child:
                ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
                if places:
                    places.enter(number)
                os._exit(work(number, task, Path(folder), port))
            children[child] = number
        if places:
            places.join(list(children))
        codes = reap(children, task["watched"])
        if places:
            places.close()
        if keeper:
            os.kill(keeper, signal.SIGKILL)
            os.waitpid(keeper, 0)
        return [
            {"code": codes[number], "out": read(folder, number, "out"), "err": read(folder, number, "err")}
            for number in range(task["count"])
        ]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def keep() -> tuple[int, int]:
    """A process that holds the store, and its port."""
    reader, writer = os.pipe()
    keeper = os.fork()
    if not keeper:
        from torch.distributed import TCPStore

        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writer, str(store.port).encode())
        signal.pause()
    os.close(writer)
    with os.fdopen(reader) as told:
        return keeper, int(told.read(5))


def read(folder: str, number: int, name: str) -> str:
    file = Path(folder) / f"{number}.{name}"
    return file.read_text() if file.is_file() else ""


def reap(children: dict[int, int], watched: bool) -> dict[int, int]:
    """Exit codes by number, one that takes too long being killed.

    Where they are watched, one that failed has the others asked to stop, as torchrun does.
    """
    codes, until = dict[int, int](), time.monotonic() + LIMIT
    while len(codes) < len(children):
        left = [one for one, number in children.items() if number not in codes]
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in children:
            codes[children[child]] = os.waitstatus_to_exitcode(status)
            if watched and status:
                tell(left, child)
        elif time.monotonic() > until:
            for one in left:
                os.kill(one, signal.SIGKILL)
        time.sleep(0 if child else 0.01)
    return codes


def tell(left: list[int], gone: int) -> None:
    """Ask the others to stop."""
    for other in left:
        if other != gone:
            os.kill(other, signal.SIGTERM)


def work(number: int, task: dict[str, Any], folder: Path, port: int) -> int:
    if task["count"] > 1:
        os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(task["count"]))
        os.environ.update(MASTER_ADDR=hosts.address(0) if task["apart"] else "127.0.0.1", MASTER_PORT=str(port))
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(task["kept"])
    os.environ.update(task["environment"])
    out, err, code = io.StringIO(), io.StringIO(), 1
    stuck = (folder / f"{number}.err").open("w")
    faulthandler.dump_traceback_later(LIMIT - 10, file=stuck)  # where it stands, should it have to be killed
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = told(number, task)
    finally:
        faulthandler.cancel_dump_traceback_later()
        stuck.close()
        (folder / f"{number}.out").write_text(out.getvalue())
        (folder / f"{number}.err").write_text(err.getvalue())
    return code


def told(number: int, task: dict[str, Any]) -> int:
    from lorakit.cli import run
    from lorakit.engine import crew

    crew.GONE = 6.0
    at = task["at"]
    if at and at.get("rank", number) == number:
        prepare(at, number)
    return run(task["arguments"])


def prepare(at: dict[str, Any], number: int) -> None:
    """Let this process do something to itself."""
    if at["do"] == "weigh":
        shards.weigh(Path(at["into"]) / f"{number}.jsonl")
    elif at["do"] == "hold whole":
        shards.hold_whole()
    elif at["do"] == "other torch":
        other_torch()
    elif at["do"] == "pass the shares of":
        shares.arrange(at["processes"])
    elif at["do"] == "add in order":
        shares.add_in_order()
    elif at["do"] == "stop before all are here":
        stop_before_all_are_here(number)
    elif at["do"] == "note pictures":
        pictures(lambda drawn: note(Path(at["into"]) / f"{number}.txt", drawn))
    elif "picture" in at:
        pictures(lambda drawn: happen(at["do"]) if drawn == at["picture"] else None)
    elif "gather" in at:
        shards.before(at["gather"], lambda: happen(at["do"]))
    else:
        before_the_sum(at)


def other_torch() -> None:
    from lorakit.engine import joining

    own = joining.versions()
    joining.versions = lambda: tuple((name, "1.0" if name == "torch" else one) for name, one in own)


def stop_before_all_are_here(number: int) -> None:
    """The first is asked to stop while it waits for the others, who come only then."""
    from lorakit.engine import joining
    from lorakit.engine.crew import Crew

    own = joining._agree

    def late(crew: Crew, *arguments: Any) -> None:
        if number == 0:
            happen("terminate")
        while number and not crew._cause():
            time.sleep(0.01)
        own(crew, *arguments)

    joining._agree = late


def pictures(happening: Callable[[int], None]) -> None:
    """Let something happen before this process draws a picture; it is told how many it has drawn then, and this one."""
    from lorakit.engine.studio import Studio

    own, calls = Studio.draw, count(1)

    def drawn(self: Studio, *arguments: Any) -> Any:
        happening(next(calls))
        return own(self, *arguments)

    Studio.draw = drawn  # type: ignore[method-assign]


def note(file: Path, number: int) -> None:
    file.write_text(str(number))


def before_the_sum(at: dict[str, Any]) -> None:
    from lorakit.engine.crew import Crew

    settled, calls = Crew.settled, count(1)

    def ill(self: Crew, *arguments: Any) -> Any:
        """Between the passes of an update and the sum of its gradient."""
        if next(calls) == at["update"]:
            happen(at["do"])
        return settled(self, *arguments)

    Crew.settled = ill  # type: ignore[method-assign]


def happen(what: str) -> None:
    if what == "raise":
        raise ValueError("something broke")
    if what == "cut":
        return hosts.cut()
    if what == "wait for ever":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pause()
    return os.kill(os.getpid(), {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}[what])


if __name__ == "__main__":
    serve()
