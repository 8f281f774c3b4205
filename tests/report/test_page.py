"""What the page of a run holds, that it is safe to open, and that everybody can read it."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from importlib import resources
from itertools import pairwise
from types import SimpleNamespace

import pytest
from PIL import Image

from lorakit import history
from lorakit.cli import run
from lorakit.events import Alarm, Event, PhaseFinished, PhaseStarted, UpdateFinished, Warned
from lorakit.report import html
from lorakit.report.told import validation_share
from tests.evidence.stories import tell, validated
from tests.pictures import picture, scene
from tests.report.reading import Page

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)></script>"
HARD = (0.2, -0.1, 0.1, -0.2, 0.05, -0.05)


@pytest.fixture
def folder(pictures, tmp_path):
    """A run that overfits, with two prompts, an alarm, a warning and everything else that a page tells of."""
    told = [validated(0, 0.9, drift=0.0), *(validated(n, loss, apart=HARD) for n, loss in [(20, 0.3), (40, 0.5)])]
    drawn = {n: [(EVIL, scene(n)), ("a dog", Image.new("RGB", (64, 64)) if n == 40 else scene(3))] for n in (20, 40)}
    made = tell(pictures, tmp_path / "runs", told, previews=drawn)
    add(made, Alarm(kind="loss spike", update=7, message=f"so high {EVIL}", advice=("lower it", EVIL), count=1))
    add(made, Alarm(kind="loss spike", update=9, message="again", count=2))
    add(made, Warned(message=f"mind {EVIL}"))
    return made


def add(folder, event):
    with (folder / "events.jsonl").open("a") as file:
        file.write(f"{event.to_json()}\n")


def page_of(folder):
    return html(history.read(folder))


# -- what it says ------------------------------------------------------------------------------------------------


def test_it_says_what_a_run_says(folder):
    page = Page(page_of(folder))
    parts = {one.attributes["id"]: one for one in page.all("h2")}
    assert list(parts) == ["summary", "choice", "course", "pictures", "warnings", "data", "plan"]
    sections = {one.attributes["aria-labelledby"]: one.text for one in page.all("section")}
    assert "Proof: diffusers 48/48 modules" in sections["summary"]
    assert "Recommended: update 20" in sections["choice"]
    assert "Dropped" in sections["choice"]
    assert "update 40: 1 of its 2 previews show nothing (000040-1.png is black)" in sections["choice"]
    assert "loss spike, 2 times" in sections["warnings"]
    assert "lower it" in sections["warnings"]
    assert "a tenth" not in sections["data"]
    assert "64x64" not in sections["data"]
    assert "48x48 (3)" in sections["data"]
    assert "optimizer.learning_rate" in sections["plan"]
    assert "preset qwen/toy" in sections["plan"]


def test_the_plots_are_the_figures_of_the_run(folder):
    page = Page(page_of(folder))
    numbers = {
        one.attributes["id"].removeprefix("numbers-"): json.loads(one.text)
        for one in page.all("script")
        if one.attributes.get("type") == "application/json"
    }
    assert set(numbers) >= {"loss", "held", "trigger", "drift", "rate", "norm", "speed"}
    held = numbers["held"]
    assert held["at"] == [20, 40]
    assert held["mark"] == 20
    assert [line["name"] for line in held["lines"]] == ["held-out loss", "same, training pictures"]
    assert held["lines"][0]["values"] == [0.3, 0.5]
    assert held["lines"][0]["errors"] == [0.02, 0.02]
    raw, smooth = numbers["loss"]["lines"]
    assert raw["values"] == [1 / update for update in numbers["loss"]["at"]]
    assert smooth["values"] == history.smoothed(raw["values"])
    for plot in numbers.values():
        for line in plot["lines"]:
            assert len(line["values"]) == len(plot["at"])


def test_a_long_run_keeps_its_ends_and_stays_small(folder):
    for update in range(41, 20_000):
        add_line = UpdateFinished(
            update=update, passes=update, epoch=1, loss=0.1, learning_rate=1e-3, grad_norm=1, seconds=0.1, memory=10**9
        )
        if update % 7 == 0:
            add(folder, add_line)
    text = page_of(folder)
    loss = json.loads(re.search(r'id="numbers-loss">(.*?)</script>', text)[1])
    assert len(loss["at"]) <= 601
    assert (loss["at"][0], loss["at"][-1]) == (1, 19_999)
    assert text.count("<tr>") < 1000


def test_numbers_that_are_none_leave_a_gap(folder):
    odd = UpdateFinished(
        update=41, passes=1, epoch=1, loss=math.nan, learning_rate=1e-3, grad_norm=math.inf, seconds=0.1
    )
    add(folder, odd)
    text = page_of(folder)
    norm = json.loads(re.search(r'id="numbers-norm">(.*?)</script>', text)[1])
    assert norm["lines"][0]["values"][-1] is None
    assert "NaN" not in "".join(re.findall(r'id="numbers-\w+">(.*?)</script>', text))


def test_a_run_that_nothing_can_be_recommended_of_says_why(pictures, tmp_path):
    folder = tell(pictures, tmp_path / "runs", [], checkpoints=[10], finished=False)
    page = page_of(folder)
    assert "was never validated" in page
    assert "Under way on" in page
    (folder / "events.jsonl").unlink()
    assert "has no checkpoint" not in page
    assert "0 of" in page_of(folder)  # a run that did nothing yet has a page too


def test_pictures_are_few_and_small_enough(pictures, tmp_path):
    updates, one = range(10, 150, 10), scene(1, (240, 240))
    drawn = {n: [(f"prompt {number}", one) for number in range(9)] for n in updates}
    folder = tell(pictures, tmp_path / "runs", [validated(n, 0.2 if n == 90 else 0.3) for n in updates], previews=drawn)
    text = page_of(folder)
    page = Page(text)
    shown = [one.attributes["alt"] for one in page.all("img")]
    assert len(shown) == 12 * 8
    assert "prompt 0, update 90" in shown  # which is recommended
    assert "prompt 0, update 10" in shown
    assert "prompt 0, update 140" in shown
    assert "2 updates and 1 prompt more, left out to keep the page small." in text
    assert len(text) < 5e6


def test_sheets_of_the_grid_are_shown_and_its_single_pictures_are_not(folder):
    for name in ("grid/sheet.png", "grid/pieces/000020-0.png"):
        picture(folder / name, (96, 96))
    alts = [one.attributes["alt"] for one in Page(page_of(folder)).all("img")]
    assert alts[-1] == "Checkpoints by strength and guidance, pictures side by side"
    assert len(alts) == 5  # two prompts at two updates, and the sheet


# -- that it is safe ---------------------------------------------------------------------------------------------


def test_what_is_not_ours_is_escaped_and_nothing_is_fetched(folder):
    text = page_of(folder)
    page = Page(text)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert not [one for one in page.elements if any(name.startswith("on") for name in one.attributes)]
    for one in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            target = one.attributes.get(name, "#")
            assert target.startswith(("data:image/", "#")), (one.tag, name, target)
    assert not page.all("link", "iframe", "object", "form", "base")
    assert not re.search(r"@import|url\(", "".join(one.text for one in page.all("style")))


def test_only_the_scripts_of_the_package_may_run(folder):
    page = Page(page_of(folder))
    (policy,) = [one.attributes["content"] for one in page.all("meta") if "http-equiv" in one.attributes]
    scripts = [one.text for one in page.all("script") if "type" not in one.attributes]
    assert len(scripts) == 2
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    assert policy.split("script-src ")[1] == " ".join(f"'sha256-{one}'" for one in digests)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_library_is_the_one_that_was_published():
    """uPlot 1.6.32 from its package, to the byte, with its licence beside it."""
    folder = resources.files("lorakit.report")
    held = folder.joinpath("uPlot.iife.min.js").read_bytes()
    assert hashlib.sha256(held).hexdigest() == "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
    assert "MIT License" in folder.joinpath("uPlot.LICENSE").read_text()


def test_secrets_do_not_reach_the_page(folder, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abcd-efgh-1234")
    add(folder, Warned(message="the key is abcd-efgh-1234"))
    assert "abcd-efgh" not in page_of(folder)


# -- that everybody can read it ----------------------------------------------------------------------------------


def test_headings_names_and_alternatives(folder):
    page = Page(page_of(folder))
    levels = [int(one.tag[1]) for one in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    names = [one.attributes["id"] for one in page.elements if "id" in one.attributes]
    assert len(names) == len(set(names))
    for one in page.elements:
        if "aria-labelledby" in one.attributes:
            assert one.attributes["aria-labelledby"] in names
    for one in page.all("img"):
        assert one.attributes["alt"]
    for one in page.all("a"):
        assert one.attributes["href"].removeprefix("#") in names
    assert page.all("html")[0].attributes["lang"] == "en"
    assert [one.tag for one in page.all("main", "header", "nav")] == ["header", "nav", "main"]
    assert page.all("a")[0].attributes == {"class": "skip", "href": "#main"}


def test_every_plot_is_told_in_words_and_in_a_table(folder):
    page = Page(page_of(folder))
    drawn = [one for one in page.all("div") if one.attributes.get("class") == "drawn"]
    assert len(drawn) >= 7
    for one in drawn:
        assert one.attributes["role"] == "img"
        assert re.search(r"at update \d+.*lowest", one.attributes["aria-label"])
    assert sum("as a table" in one.text for one in page.all("summary")) == len(drawn)
    assert page.all("noscript")
    for one in page.all("th"):
        assert one.attributes["scope"] in ("row", "col")


def test_what_scrolls_can_be_reached_by_keyboard(folder):
    page = Page(page_of(folder))
    scrolling = [one for one in page.all("div") if one.attributes.get("class") == "scroll"]
    assert scrolling
    assert all(one.attributes["tabindex"] == "0" and one.attributes["aria-label"] for one in scrolling)
    assert not [one for one in page.elements if int(one.attributes.get("tabindex", 0)) > 0]


def test_colours_stand_out_enough_in_light_and_dark(folder):
    """4.5 to 1, as WCAG asks of text, on the ground and on cards; lines of plots 3 to 1."""
    style = "".join(one.text for one in Page(page_of(folder)).all("style"))
    light, dark = (dict(re.findall(r"--(\w+): (#\w+)", one)) for one in re.findall(r":root \{(.*?)\}", style, re.S))
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for ground in ("ground", "card"):
            for ink in ("ink", "soft", "one", "good", "bad", "two", "three", "four"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(one, other):
    def light(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_real_browser_draws_every_plot_and_complains_of_nothing(folder, tmp_path):
    assert run(["report", str(folder)]) == 0
    done = subprocess.run(
        [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
            f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=3000", "--dump-dom",
            f"file://{folder / 'report.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    drawn = done.stdout.count('class="drawn"')
    assert drawn >= 7
    assert done.stdout.count("<canvas") == drawn


# -- the command -------------------------------------------------------------------------------------------------


def test_the_command_writes_it_beside_the_run_or_elsewhere(folder, tmp_path, capsys):
    assert run(["report", str(folder)]) == 0
    assert (folder / "report.html").is_file()
    assert capsys.readouterr().out == f"report       {folder / 'report.html'}\n"
    assert run(["report", str(folder), "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == (folder / "report.html").read_text()


def test_bad_input(folder, tmp_path, capsys):
    assert run(["report", str(tmp_path / "nothing")]) == 2
    assert "is not a run" in capsys.readouterr().err
    assert run(["report", str(folder), "--output", str(tmp_path / "no" / "page.html")]) == 2
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert "--output" in said
    assert run(["report"]) == 2


def test_lines_that_were_cut_short_or_are_unknown_do_not_matter(folder):
    before = page_of(folder)
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "FromTheFuture", "time": 1}\nnothing\n{"event": "Upd')
    assert page_of(folder) == before
    assert Event.from_json(Warned(message="x").to_json())


def test_validation_s_share_is_of_all_of_training_and_of_no_pause_between_two_sittings():
    def at(time, kind, **more):
        return kind(time=time, **more)

    done = {
        "passes": 1,
        "epoch": 1.0,
        "loss": 1.0,
        "learning_rate": 1e-4,
        "grad_norm": 1.0,
        "seconds": 1.0,
        "memory": 0,
    }
    told = replace(validated(1), time=7.0)  # it took a second
    events = (
        at(0.0, PhaseStarted, phase="train"),
        at(5.0, UpdateFinished, update=1, **done),
        told,
        at(8.0, PhaseFinished, phase="train", seconds=8.0),
        at(50.0, PhaseStarted, phase="save"),
        at(60.0, PhaseFinished, phase="save", seconds=10.0),
        at(100.0, PhaseStarted, phase="train"),
        at(102.0, UpdateFinished, update=2, **done),
    )
    run = SimpleNamespace(events=events, validations=(told,), told=lambda kind: [told])
    assert validation_share(run) == "1 time, 10.0% of the time of training"
