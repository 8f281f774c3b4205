"""The hand on a run, and how another process reaches for it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import psutil
import pytest

from lorakit import channel
from lorakit.channel import FOLDER, RUN, reachable
from lorakit.cli import run as command_line
from lorakit.control import Control
from lorakit.errors import RunError, UnansweredError


def told(control):
    return [(one.what, one.refused) for one in control.take()]


def test_what_is_asked_is_taken_in_order_and_once():
    control = Control()
    control.sample(by="me")
    control.pause()
    assert control.paused
    control.resume()
    assert not control.paused
    taken = control.take()
    assert [one.what for one in taken] == ["sample", "pause", "resume"]
    assert (taken[0].by, taken[0].refused) == ("me", "")
    assert control.take() == []


def test_what_makes_no_sense_is_refused_in_words():
    control = Control()
    assert control.ask("resume") == "it is not paused"
    assert control.ask("pause") == ""
    assert control.ask("pause") == "it is paused already"
    control.begin({"sample": "nothing to draw"})
    assert control.ask("sample") == "nothing to draw"
    control.stop("lunch")
    assert (control.stopping, control.reason) == (True, "lunch")
    assert control.ask("save") == "the run is stopping already"
    assert [refused for _, refused in told(control)] == [
        "it is not paused",
        "",
        "it is paused already",
        "nothing to draw",
        "",
        "the run is stopping already",
    ]


def test_what_was_asked_too_early_is_refused_once_the_run_says_so():
    control = Control()
    control.sample()
    control.save()
    control.begin({"sample": "nothing to draw"})
    assert told(control) == [("sample", "nothing to draw"), ("save", "")]


def test_from_many_threads_nothing_is_lost():
    control = Control()
    threads = [threading.Thread(target=lambda: [control.save() for _ in range(50)]) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(control.take()) == 400


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_signal_reaches_a_thread_that_holds_the_control():
    control = Control()
    before = signal.signal(signal.SIGUSR1, lambda *_: control.stop("a signal"))
    try:
        with control._changed:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert control.stopping
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- from another process ------------------------------------------------------------------------------------------


def ask(run, what, timeout=20.0):
    return channel.ask(run, what, "a test", timeout)


def test_a_run_answers_and_leaves_nothing(tmp_path):
    control = Control()
    with reachable(tmp_path, control) as why:
        assert why == ""
        assert ask(tmp_path, "status").state == "running"
        answer = ask(tmp_path, "pause")
        assert (answer.refused, answer.state, answer.process, answer.host) == (
            "",
            "paused",
            os.getpid(),
            socket.gethostname(),
        )
        assert ask(tmp_path, "pause").refused == "it is paused already"
        assert ask(tmp_path, "sing").refused == "it knows nothing of 'sing'"
        assert ask(tmp_path, "stop").state == "stopping"
    assert [one.by for one in control.take()] == ["a test"] * 3
    assert list(tmp_path.iterdir()) == []


def test_a_whole_process_asks_and_is_answered(tmp_path):
    control = Control()
    words = [sys.executable, "-m", "lorakit", "ctl", str(tmp_path)]
    with reachable(tmp_path, control):
        said = subprocess.run([*words, "save", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == {
        "refused": "",
        "state": "running",
        "process": os.getpid(),
        "host": socket.gethostname(),
    }
    assert told(control) == [("save", "")]
    late = subprocess.run([*words, "save"], capture_output=True, text=True)
    assert (late.returncode, late.stdout) == (2, "")
    assert late.stderr.startswith(f"error: the run {tmp_path} is not running. nobody is at work there.")


def test_the_command_line_says_what_comes_and_what_is_refused(tmp_path, capsys):
    with reachable(tmp_path, Control()):
        assert command_line(["ctl", str(tmp_path), "pause"]) == 0
        assert capsys.readouterr().out.startswith(f"pause: paused, process {os.getpid()} on ")
        assert command_line(["ctl", str(tmp_path), "pause"]) == 2
        assert "does not pause. it is paused already." in capsys.readouterr().err
        assert command_line(["ctl", str(tmp_path), "sing"]) == 2
        assert command_line(["ctl", str(tmp_path), "pause", "--timeout", "nan"]) == 2
    capsys.readouterr()
    assert command_line(["ctl", str(tmp_path / "none"), "stop"]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_what_a_killed_run_left_is_never_obeyed(tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / RUN).write_text("{}")
    (folder / f"{'0' * 32}.ask").write_text('{"what": "stop"}')
    (folder / f"{'1' * 32}.answer").write_text("{}")
    control = Control()
    with reachable(tmp_path, control):
        assert ask(tmp_path, "status").state == "running"
    assert not control.stopping
    assert list(tmp_path.iterdir()) == []


def who(tmp_path, **about):
    (tmp_path / FOLDER).mkdir(exist_ok=True)
    (tmp_path / FOLDER / RUN).write_text(json.dumps({"token": "t", **about}))


def test_a_run_that_was_killed_is_not_running(tmp_path, monkeypatch):
    monkeypatch.setattr(channel, "GRACE", 0.0)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    who(tmp_path, process=dead.pid, began=1.0, host=socket.gethostname())
    with pytest.raises(RunError, match=rf"is not running\. its process {dead.pid} is gone, and left no word"):
        ask(tmp_path, "stop", timeout=3600)
    assert [one.name for one in (tmp_path / FOLDER).iterdir()] == [RUN]


def test_a_run_that_hangs_is_another_thing(tmp_path):
    began = psutil.Process().create_time()
    who(tmp_path, process=os.getpid(), began=began, host=socket.gethostname())
    with pytest.raises(UnansweredError, match=rf"no answer within 0 seconds. it is process {os.getpid()} on ") as told:
        ask(tmp_path, "stop", timeout=0)
    assert told.value.exit_code == 1
    assert [one.name for one in (tmp_path / FOLDER).iterdir()] == [RUN]  # nobody shall obey it later
    who(tmp_path, process=1, began=began, host="elsewhere")
    with pytest.raises(UnansweredError, match="process 1 on elsewhere"):
        ask(tmp_path, "stop", timeout=0)


def test_a_channel_that_leads_elsewhere_is_refused(tmp_path):
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    run.mkdir()
    (elsewhere / "precious").write_text("mine")
    (run / FOLDER).symlink_to(elsewhere)
    with reachable(run, Control()) as why:
        assert "cannot reach this run" in why
        with pytest.raises(RunError, match="a link would lead out of the run"):
            ask(run, "stop")
    assert [one.name for one in elsewhere.iterdir()] == ["precious"]


def test_messages_that_are_none_are_passed_over(tmp_path):
    control = Control()
    with reachable(tmp_path, control):
        folder = tmp_path / FOLDER
        (folder / f"{'0' * 32}.ask").symlink_to(tmp_path / "nothing")
        (folder / f"{'1' * 32}.ask").write_text('{"what": "stop"' + " " * 5000 + "}")
        (folder / f"{'2' * 32}.ask").write_text("[[[")
        (folder / f"{'3' * 32}.ask").write_text('{"what": ["stop"], "by": {"a": 1}}')
        (folder / "stop").write_text('{"what": "stop"}')
        assert ask(tmp_path, "status").state == "running"
    assert control.take() == []
